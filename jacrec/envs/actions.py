"""What the networks' actions in [-1, 1] stand for: the bounds of an environment's or a data set's actions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import gymnasium
import numpy as np

from jacrec.util.errors import expect_one_of

CHOICES = ("env", "data")
"""whose bounds [-1, 1] may stand for"""
LARGEST = float(np.finfo(np.float32).max)
"""bounds as large as this are how some environments write infinity"""


@dataclass(frozen=True)
class ActionBox:
    """Finite bounds of actions, one number per component, or a single one for all of them.

    [-1, 1] is mapped to [low, high] by an affine map per component. Bounds of exactly -1 and 1 change nothing: actions are
    returned as they are, to the last bit.

    Raises:
        ValueError: bounds that are not finite, of different lengths, or not increasing.
    """

    low: tuple[float, ...] = (-1.0,)
    high: tuple[float, ...] = (1.0,)

    def __post_init__(self):
        if len(self.low) != len(self.high) or not self.low:
            raise ValueError(f"action bounds: expected as many lower as upper ones, got {len(self.low)} and {len(self.high)}")
        if not all(-LARGEST < low < high < LARGEST for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError(f"action bounds: expected finite numbers, each lower one below its upper one, got {self}")

    def __str__(self) -> str:
        pairs = list(zip(self.low, self.high, strict=True))
        same = len(set(pairs)) == 1
        return " x ".join(f"[{_shortest(low)}, {_shortest(high)}]" for low, high in (pairs[:1] if same else pairs))

    def arguments(self) -> str:
        """As arguments of the command line."""
        low, high = (" ".join(map(_shortest, bound)) for bound in (self.low, self.high))
        return f"--action-low {low} --action-high {high}"

    @classmethod
    def stated(cls, low: float | Sequence[float] | np.ndarray | None, high) -> "ActionBox | None":
        """The bounds that a caller states, as numbers or one number per component; None if there are none.

        Raises:
            ValueError: only one of them, or not bounds.
        """
        if low is None and high is None:
            return None
        if low is None or high is None:
            raise ValueError(f"action_low, action_high: expected both or neither, got {low} and {high}")
        try:
            low, high = np.broadcast_arrays(np.ravel(np.asarray(low, np.float64)), np.ravel(np.asarray(high, np.float64)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"action_low, action_high: expected one number, or one per component, got {error}") from None
        return cls(tuple(low.tolist()), tuple(high.tolist()))

    @classmethod
    def expect(cls, box: object) -> None:
        """ValueError for anything but an action box or None."""
        if box is not None and not isinstance(box, cls):
            raise ValueError(f"action_box: expected an ActionBox or None, got {box!r}; ActionBox.stated(low, high) makes one")

    @classmethod
    def of(cls, space: gymnasium.Space, name: str, remedy: str) -> "ActionBox":
        """The bounds of a gymnasium space.

        Raises:
            ValueError: not a Box, or one without finite bounds; says the `remedy`.
        """
        if isinstance(space, gymnasium.spaces.Box):
            low, high = (np.asarray(bound, np.float64).ravel() for bound in (space.low, space.high))
            if low.size and np.all((low > -LARGEST) & (low < high) & (high < LARGEST)):
                return cls(tuple(low.tolist()), tuple(high.tolist()))
        raise ValueError(f"{name}: expected actions with finite bounds (a Box), got {space}; {remedy}")

    @cached_property
    def is_unit(self) -> bool:
        """Whether these are exactly -1 and 1."""
        return set(self.low) == {-1.0} and set(self.high) == {1.0}

    @cached_property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.low), np.array(self.high)

    def serves(self, action_dim: int) -> bool:
        """Whether these can be the bounds of m components."""
        return len(self.low) in (1, action_dim)

    def same_as(self, other: "ActionBox") -> bool:
        """Whether both are the same bounds, but for float32's rounding."""
        return bool(np.allclose(self._bounds, other._bounds, rtol=1e-6, atol=1e-9))

    def to_unit(self, action: np.ndarray) -> np.ndarray:
        """Actions (..., m) within the bounds -> (..., m) in [-1, 1], float64."""
        if self.is_unit:
            return action
        low, high = self._bounds
        return (2.0 * np.asarray(action, np.float64) - (high + low)) / (high - low)

    def from_unit(self, action: np.ndarray) -> np.ndarray:
        """Actions (..., m) in [-1, 1] -> (..., m) within the bounds, float64; those outside are clipped."""
        if self.is_unit:
            return action
        low, high = self._bounds
        return np.clip((high + low) / 2.0 + np.asarray(action, np.float64) * ((high - low) / 2.0), low, high)


def _shortest(bound: float) -> str:
    """The fewest digits, six or more, that tell it up to float32's rounding, so that what is printed can be given as an argument."""
    texts = (f"{bound:.{digits}g}" for digits in range(6, 10))
    return next((text for text in texts if math.isclose(float(text), bound, rel_tol=1e-7)), f"{bound:g}")


def played_box(space: gymnasium.Space, env_id: str, data: ActionBox | None = None, choice: str | None = None) -> ActionBox:
    """The bounds that [-1, 1] stands for when a policy plays in an environment.

    By default they are the environment's. If the data state others, [-1, 1] could mean either, so `choice` has to say which.

    Args:
        space: the environment's action space.
        data: the bounds that the data state; None if they state none.
        choice: "env" or "data" (those that the data state, else [-1, 1] itself); None: the default.

    Raises:
        ValueError: the environment's bounds are not finite, or differ from the data's, and `choice` does not say which count.
    """
    if choice is not None:
        expect_one_of("action_bounds", choice, CHOICES)
    if choice == "data":
        return data or ActionBox()
    remedy = "bound them with a wrapper, or use those of the data: action_bounds (--action-bounds) data"
    own = ActionBox.of(space, env_id, remedy)
    if choice is None and data is not None and data.serves(len(own.low)) and not data.same_as(own):
        raise ValueError(
            f"{env_id}: expected action bounds {data}, as in the data, got {own}; state which of them the policy's [-1, 1] "
            "stands for: action_bounds (--action-bounds) data or env"
        )
    return own


def expect_time_limit(env_id: str, limit: int | None) -> None:
    """Raise ValueError if episodes may never end."""
    if limit is None:
        raise ValueError(
            f"{env_id}: expected an environment with a time limit, got one without; set max_episode_steps (--max-episode-steps)"
        )
