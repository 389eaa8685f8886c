"""Transitions (s, a, r, s') of an offline data set, and its metadata."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from jacrec.envs.actions import ActionBox
from jacrec.envs.ogbench import is_single_task
from jacrec.util.errors import expect_seed

STD_FLOOR = 1e-6
ARRAYS = "arrays"
"""the source of data that `from_arrays` made; no name leads back to them"""
Bound = float | Sequence[float]
"""a bound of actions: one number, or one per component"""


@dataclass(frozen=True)
class DatasetInfo:
    """Metadata of a data set: origin, evaluation environment, score normalisation."""

    name: str
    env_id: str | None = None
    """gymnasium id of the environment that generated the data and evaluates it, e.g. ``Hopper-v4``"""
    ref_min: float | None = None
    """return with score 0 (D4RL's reference); None if there is none"""
    ref_max: float | None = None
    """return with score 100"""
    source: str = ""
    """how the data were generated or obtained, one line"""
    physics: dict = field(default_factory=dict)
    """MuJoCo version and contact compatibility used during collection (see `jacrec.envs.physics`)"""
    action_low: tuple[float, ...] | None = None
    """what an action of -1 stands for in the environment's units, one number per component or one for all; None if the data
    do not state it: then the evaluation environment's own bounds"""
    action_high: tuple[float, ...] | None = None
    """the same for an action of 1"""

    def __post_init__(self):
        box = ActionBox.stated(self.action_low, self.action_high)
        object.__setattr__(self, "action_low", box and box.low)  # a record holds lists
        object.__setattr__(self, "action_high", box and box.high)

    @property
    def action_box(self) -> ActionBox | None:
        """The bounds that the data state for their actions, or None."""
        return ActionBox.stated(self.action_low, self.action_high)

    @property
    def scored(self) -> bool:
        """Whether there are scores."""
        return is_single_task(self.env_id) or (self.ref_min is not None and self.ref_max is not None)

    def score(self, returns, terminated=None):
        """D4RL's normalised score in percent: 100 (return − ref_min) / (ref_max − ref_min); None without references.

        A score of 100 is the reference expert. Minari's and D4RL's `get_normalized_score` return this divided by 100. In OGBench's
        single tasks the score is the success: 100 for an episode that the task terminates, which it does at the goal, else 0.

        Args:
            returns: of the episodes.
            terminated: whether the task ended them; required for OGBench's single tasks.
        """
        if is_single_task(self.env_id):
            if terminated is None:
                raise ValueError(
                    f"terminated: expected one flag per episode, whose score in {self.env_id} is its success, got None"
                )
            return 100.0 * np.asarray(terminated, np.float64)
        if self.ref_min is None or self.ref_max is None:
            return None
        return 100.0 * (np.asarray(returns) - self.ref_min) / (self.ref_max - self.ref_min)


def expect_transitions(data: object) -> None:
    """Raise ValueError unless they are `Transitions`."""
    if not isinstance(data, Transitions):
        raise ValueError(
            "data: expected Transitions, as of jacrec.data.load, jacrec.data.from_arrays or jacrec.adapters.transitions_from_sb3, got "
            f"{type(data).__name__}"
        )


def with_bounds(info: DatasetInfo, low: Bound | None, high: Bound | None) -> DatasetInfo:
    """The metadata with the bounds that a caller states for the actions, if any.

    Raises:
        ValueError: not bounds.
    """
    box = ActionBox.stated(low, high)
    return info if box is None else replace(info, action_low=box.low, action_high=box.high)


@dataclass(frozen=True)
class Statistics:
    """Means and standard deviations over transitions, float64. Every std is at least `STD_FLOOR`."""

    state_mean: np.ndarray  # (d,)
    state_std: np.ndarray  # (d,)
    delta_mean: np.ndarray  # (d,) of next_state − state
    delta_std: np.ndarray  # (d,)
    reward_mean: float
    reward_std: float


@dataclass(frozen=True)
class Transitions:
    """n transitions in the order of collection; all arrays share the first axis.

    Created by `jacrec.data.load` or `jacrec.data.from_arrays`. `next_action` is the action taken in the data at `next_state`;
    it is meaningless where `has_next_action` is False (at the end of an episode). `next_state` is always the true successor:
    the readers drop rows whose successor the file does not contain. The terminal rows among them are still valid for a
    critic, which does not use their successor; they are kept in `blind_ends` for `for_td`.
    """

    state: np.ndarray  # (n, d) float32
    action: np.ndarray  # (n, m) float32 in [-1, 1]
    reward: np.ndarray  # (n,) float32, raw
    next_state: np.ndarray  # (n, d) float32
    next_action: np.ndarray  # (n, m) float32
    terminal: np.ndarray  # (n,) bool: the MDP ended here, no bootstrapping
    has_next_action: np.ndarray  # (n,) bool: followed by another row of the same episode
    episode: np.ndarray  # (n,) int64, index of the episode, counted from 0
    info: DatasetInfo
    blind_ends: "Transitions | None" = None
    """terminal rows whose successor is not in the file (their `next_state` repeats `state`), or None"""
    validation: "Transitions | None" = None
    """further episodes that came with the data to measure errors on (OGBench's NAME-val.npz); then none of the others are held out"""

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def state_dim(self) -> int:
        return self.state.shape[1]

    @property
    def action_dim(self) -> int:
        return self.action.shape[1]

    def rows(self, index: np.ndarray | slice) -> "Transitions":
        """The transitions selected by an integer or boolean index or a slice, without `blind_ends` and `validation`."""
        arrays = {k: v[index] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return replace(self, **arrays, blind_ends=None, validation=None)

    def split(self, fraction: float, seed: int) -> tuple["Transitions", "Transitions"]:
        """(train, held_out): hold out `fraction` of the episodes (at least one), chosen at random by `seed`.

        Data that brought episodes for it (`validation`) give those, and are kept whole.

        Raises:
            ValueError: `fraction` outside (0, 1), or a single episode.
        """
        expect_seed("seed", seed)
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"fraction: expected a number in (0, 1), got {fraction}")
        if self.validation is not None:
            return replace(self, validation=None), self.validation
        ends = () if self.blind_ends is None else (self.blind_ends.episode,)
        episodes = np.unique(np.concatenate((self.episode, *ends)))
        if len(episodes) < 2:
            raise ValueError(
                f"split: expected at least two episodes, got {len(episodes)}; mark where they end (ends, lengths, timeouts), or "
                "collect or load more data"
            )
        count = min(max(round(fraction * len(episodes)), 1), len(episodes) - 1)
        held_out = np.random.default_rng(seed).permutation(episodes)[:count]
        return self._select_episodes(held_out, invert=True), self._select_episodes(held_out)

    def for_td(self) -> "Transitions":
        """The rows that a TD critic with next actions may use: terminal rows, and rows followed by another row.

        Rows that end an episode without terminating (timeouts, the end of the file) are dropped, as in ReBRAC's reader. The
        next actions of terminal rows that end an episode are zeros: the target masks them.
        """
        own = self.rows(self.terminal | self.has_next_action)
        if self.blind_ends is None:
            return own
        order = np.argsort(np.concatenate((own.episode, self.blind_ends.episode)), kind="stable")
        arrays = {
            name: np.concatenate((value, getattr(self.blind_ends, name)))[order]
            for name, value in vars(own).items()
            if isinstance(value, np.ndarray)
        }
        return replace(own, **arrays)

    def statistics(self) -> Statistics:
        """Means and stds of state, next_state − state and reward, accumulated in float64.

        A std below `STD_FLOOR` is raised to `STD_FLOOR`, so that a constant coordinate standardises to about 0 rather than NaN.

        Raises:
            ValueError: there are no rows.
        """
        if not len(self):
            raise ValueError(
                f"{self.info.name}: expected rows with a known successor to train on, got none; every row ends its episode: "
                "provide next_observations, or mark the ends of episodes where they are"
            )
        state = self.state.astype(np.float64)
        delta = self.next_state.astype(np.float64) - state
        reward = self.reward.astype(np.float64)
        floor = STD_FLOOR
        return Statistics(
            state.mean(0),
            np.maximum(state.std(0), floor),
            delta.mean(0),
            np.maximum(delta.std(0), floor),
            float(reward.mean()),
            float(max(reward.std(), floor)),
        )

    def _select_episodes(self, episodes: np.ndarray, *, invert: bool = False) -> "Transitions":
        part = self.rows(np.isin(self.episode, episodes, invert=invert))
        if self.blind_ends is None:
            return part
        ends = self.blind_ends.rows(np.isin(self.blind_ends.episode, episodes, invert=invert))
        return replace(part, blind_ends=ends if len(ends) else None)
