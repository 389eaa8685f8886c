"""Mend episodes that other recorders left slightly incomplete, on request, and say what was done."""

from dataclasses import dataclass, field

import numpy as np

from jacrec.data.transitions import DatasetInfo, Transitions
from jacrec.util.caller import warn_caller

MOST_EXCESS = 0.1
"""actions at most this far beyond ±1 are clipped; others remain an error"""
ADVICE = (
    "repair=True (--repair) skips empty episodes, drops last steps that are incomplete or not finite, and clips actions that "
    "are slightly out of bounds"
)


@dataclass
class Repairs:
    """The repairs of a data set's episodes so far."""

    skipped: list[int] = field(default_factory=list)
    """empty episodes"""
    shortened: list[int] = field(default_factory=list)
    """episodes whose last steps were dropped"""
    dropped: int = 0
    """steps dropped from them"""
    clipped: int = 0
    """steps whose actions were clipped"""
    excess: float = 0.0
    """largest distance of those actions from ±1"""
    ends: list[tuple[np.ndarray, np.ndarray, float, int]] = field(default_factory=list)
    """(state, action, reward, episode) of dropped terminal steps, which a critic can still use"""

    def usable(self, number: int, states: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> int:
        """The number of steps of an episode (T,) that can be used; the others at its end are dropped.

        A step can be used if its action, its reward and the states before and after it are finite numbers. Only the last two
        steps are examined: what is wrong earlier remains an error.
        """
        T = n = len(rewards)
        if len(states) == T or not (finite(states[T]) and finite(states[T - 1], actions[T - 1], rewards[T - 1])):
            n -= 1
        if 0 < n < T and not finite(states[n]):
            n -= 1
        if n < T:
            self.shortened.append(number)
            self.dropped += T - n
        return n

    def rows(
        self, wide: list, rewards: np.ndarray, terminal: np.ndarray, last: np.ndarray
    ) -> tuple[list, np.ndarray, np.ndarray, np.ndarray]:
        """The same without the last rows of episodes in which a number is not finite.

        `wide` are the sources with rows of several numbers, (n, width), or None; they are read if rows have to be dropped.
        """
        last = last.astype(bool)
        last[-1] = True
        ends = np.flatnonzero(last)
        bad = ~np.isfinite(rewards[ends])
        for source in (source for source in wide if source is not None and len(source.shape) == 2):
            bad |= ~np.isfinite(source[:][ends]).all(1)
        drop = np.zeros(len(last), bool)
        drop[ends[bad]] = True
        if not drop.any():
            return wide, rewards, terminal, last
        last[:-1] |= drop[1:]  # the row before ends the episode now
        self.shortened += np.flatnonzero(bad).tolist()
        self.dropped += int(drop.sum())
        return [source if source is None else source[:][~drop] for source in wide], rewards[~drop], terminal[~drop], last[~drop]

    def clip(self, excess: np.ndarray) -> None:
        """Note how far the actions of the steps (n,) that are clipped were out of bounds."""
        self.clipped += int((excess > 0.0).sum())
        self.excess = max(self.excess, float(excess.max()))

    def blind_ends(self, info: DatasetInfo) -> Transitions | None:
        """The dropped terminal steps as `Transitions.blind_ends`."""
        if not self.ends:
            return None
        state, action, reward, episode = (np.array(part) for part in zip(*self.ends, strict=True))
        yes = np.ones(len(reward), bool)
        reward = reward.astype(np.float32)
        return Transitions(state, action, reward, state.copy(), np.zeros_like(action), yes, ~yes, episode, info)

    def report(self, name: str) -> None:
        """Warn if anything was mended."""
        found = []
        if self.skipped:
            found.append(f"{len(self.skipped)} empty episodes skipped, first episode {self.skipped[0]}")
        if self.shortened:
            found.append(f"{self.dropped} last steps dropped in {len(self.shortened)} episodes, first in {self.shortened[0]}")
        if self.clipped:
            found.append(f"actions of {self.clipped} steps clipped by at most {self.excess:.2g}")
        if found:
            warn_caller(f"{name}: repaired: {'; '.join(found)}")


def finite(*numbers: np.ndarray) -> bool:
    """Whether all of them are finite."""
    return all(np.isfinite(x).all() for x in numbers)
