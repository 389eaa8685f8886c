"""Transitions (s, a, r, s') of an offline data set, and what it is.

Transitions(state, action, reward, next_state, next_action, terminal, has_next_action, episode, info)
    .rows(index) .split(fraction, seed) -> (train, held_out) .for_td() .statistics() -> Statistics

They are made by the readers (`jacrec.data.readers.load`) or from a user's own numpy arrays (`jacrec.data.from_arrays`).
"""

from dataclasses import dataclass, field, replace

import numpy as np

STD_FLOOR = 1e-6


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
        """D4RL's normalised score in percent: 100 (return − ref_min) / (ref_max − ref_min); None without reference.

        100 is the reference's expert. Minari's `get_normalized_score` and D4RL's of the same name return the hundredth part.
        """
        if self.ref_min is None or self.ref_max is None:
            return None
        return 100.0 * (np.asarray(returns) - self.ref_min) / (self.ref_max - self.ref_min)


@dataclass(frozen=True)
class Statistics:
    """Means and standard deviations over transitions, float64; every std is at least `STD_FLOOR`."""

    state_mean: np.ndarray  # (d,)
    state_std: np.ndarray  # (d,)
    delta_mean: np.ndarray  # (d,) of next_state − state
    delta_std: np.ndarray  # (d,)
    reward_mean: float
    reward_std: float


@dataclass(frozen=True)
class Transitions:
    """n transitions in the order they were collected; all arrays share the first axis.

    `next_action` is the action the data took at `next_state`; its rows are meaningless where `has_next_action` is False
    (the end of an episode). `next_state` is the true successor everywhere it is kept: rows for which the file does not
    hold it are dropped by the reader. Terminal ones among those still teach a critic, which does not look at their
    successor: they wait in `blind_ends` for `for_td`.
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
    blind_ends: "Transitions | None" = None
    """terminal rows whose successor the file does not hold (their `next_state` repeats `state`), or None"""

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def state_dim(self) -> int:
        return self.state.shape[1]

    @property
    def action_dim(self) -> int:
        return self.action.shape[1]

    def rows(self, index: np.ndarray) -> "Transitions":
        """The transitions of an integer or boolean index; `blind_ends` stay behind."""
        arrays = {k: v[index] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return replace(self, **arrays, blind_ends=None)

    def split(self, fraction: float, seed: int) -> tuple["Transitions", "Transitions"]:
        """(train, held_out): whole episodes drawn by `seed`, `fraction` of them (at least one) held out.

        Raises:
            ValueError: `fraction` outside (0, 1), or a single episode.
        """
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"fraction: expected a number between 0 and 1, got {fraction}")
        ends = () if self.blind_ends is None else (self.blind_ends.episode,)
        episodes = np.unique(np.concatenate((self.episode, *ends)))
        if len(episodes) < 2:
            raise ValueError(f"split: expected at least two episodes, got {len(episodes)}; make or load more data")
        count = min(max(round(fraction * len(episodes)), 1), len(episodes) - 1)
        held = np.random.default_rng(seed).permutation(episodes)[:count]
        return self._of_episodes(held, inside=False), self._of_episodes(held, inside=True)

    def for_td(self) -> "Transitions":
        """The rows a TD critic with next actions may use: terminal rows, and rows followed by another.

        Rows that end an episode without terminating it (timeouts, the end of the file) are dropped, as in ReBRAC's
        reader. Next actions of terminal rows that end an episode are zeros: the target masks them.
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

        A std below `STD_FLOOR` becomes `STD_FLOOR`, so that a constant coordinate standardises to about 0 and not to NaN.
        """
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

    def _of_episodes(self, episodes: np.ndarray, inside: bool) -> "Transitions":
        part = self.rows(np.isin(self.episode, episodes, invert=not inside))
        if self.blind_ends is None:
            return part
        ends = self.blind_ends.rows(np.isin(self.blind_ends.episode, episodes, invert=not inside))
        return replace(part, blind_ends=ends if len(ends) else None)
