"""Transitions (s, a, r, s') of an offline data set, and what it is."""

from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True)
class DatasetInfo:
    """What a data set is: where it came from, which environment evaluates it, how its scores are normalised."""

    name: str
    env_id: str | None = None
    """gymnasium id of the environment that made the data and evaluates it, e.g. ``Hopper-v4``."""
    ref_min: float | None = None
    """return that scores 0 (D4RL's reference), None where there is none"""
    ref_max: float | None = None
    """return that scores 100"""
    source: str = ""
    """how the data was made or obtained, one line"""
    physics: dict = field(default_factory=dict)
    """MuJoCo version and the compatibility applied while collecting (see `jacrec.envs.physics`)"""

    def score(self, returns):
        """100 (return − ref_min) / (ref_max − ref_min), or None where there is no reference."""
        if self.ref_min is None or self.ref_max is None:
            return None
        return 100.0 * (np.asarray(returns) - self.ref_min) / (self.ref_max - self.ref_min)


@dataclass(frozen=True)
class Transitions:
    """n transitions in the order they were collected; all arrays share the first axis.

    `next_action` is the action the data took at `next_state`; its rows are meaningless where `has_next_action` is False
    (the end of an episode). `next_state` is the true successor everywhere it is kept: rows for which the file does not
    hold it are dropped by the reader.
    """

    state: np.ndarray  # (n, d) float32
    action: np.ndarray  # (n, m) float32 in [-1, 1]
    reward: np.ndarray  # (n,) float32, raw
    next_state: np.ndarray  # (n, d) float32
    next_action: np.ndarray  # (n, m) float32
    terminal: np.ndarray  # (n,) bool: the MDP ended here, no bootstrapping
    has_next_action: np.ndarray  # (n,) bool: the row is followed by another of the same episode
    episode: np.ndarray  # (n,) int64, which episode, counted from 0
    info: DatasetInfo

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def state_dim(self) -> int:
        return self.state.shape[1]

    @property
    def action_dim(self) -> int:
        return self.action.shape[1]

    def rows(self, index: np.ndarray) -> "Transitions":
        """The transitions of an integer or boolean index."""
        arrays = {k: v[index] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return replace(self, **arrays)
