"""Collect whole episodes under scripted behaviour, many in parallel.

An episode depends on (seed, stage, its number within the stage) alone, not on the number of parallel episodes, the number
of threads or the machine.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jacrec.envs.actions import ActionBox, expect_time_limit
from jacrec.envs.batch import BatchedEnv
from jacrec.util.errors import expect_seed


@runtime_checkable
class StochasticPolicy(Protocol):
    """A policy with noise of its own."""

    def sample(self, state: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Map states (n, d) and standard normal noise (n, m) to actions (n, m)."""
        ...


@dataclass(frozen=True)
class BehaviourStage:
    """Behaviour for a share of the data: clip(policy(s) + noise n, ±1), or policy.sample(s, n); n ~ N(0, 1) at every step."""

    name: str
    policy: Callable[[np.ndarray], np.ndarray] | StochasticPolicy | None
    """maps states (n, d) to actions (n, m) in [-1, 1], which stands for the environment's bounds, or samples them; None: uniform
    actions"""
    noise: float = 0.0
    """standard deviation of the noise added to a deterministic policy's actions"""
    weight: int = 1
    """the stage's share of the data, relative to the other stages"""

    def act(self, state: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Actions (n, m) at states (n, d), with what was drawn for them (n, m): normal, or uniform for random actions."""
        if self.policy is None:
            return draws
        if isinstance(self.policy, StochasticPolicy):
            return self.policy.sample(state, draws)
        return np.clip(self.policy(state) + self.noise * draws, -1.0, 1.0)


@dataclass(frozen=True)
class Episode:
    """One episode of T steps."""

    observations: np.ndarray  # (T + 1, d) float64
    actions: np.ndarray  # (T, m) float32, exactly as executed, in the environment's units
    rewards: np.ndarray  # (T,) float64
    terminated: bool
    """the last step terminated the MDP; otherwise the time limit or the step budget truncated the episode"""
    terminals: np.ndarray | None = None  # (T,) bool: terminal for a critic although the episode continues (AntMaze)

    def __len__(self) -> int:
        return len(self.rewards)

    def first(self, steps: int) -> "Episode":
        """The first `steps` steps: the episode itself, or a truncated copy that did not terminate."""
        if steps >= len(self):
            return self
        terminals = None if self.terminals is None else self.terminals[:steps]
        return Episode(self.observations[: steps + 1], self.actions[:steps], self.rewards[:steps], False, terminals)


def collect(
    env_id: str,
    stages: list[BehaviourStage],
    *,
    steps: int,
    seed: int,
    physics: str = "d4rl",
    threads: int | None = None,
    rows: int | None = None,
    max_episode_steps: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Episode]:
    """Collect exactly `steps` steps, shared between the stages by their weights. Only the very last episode may be truncated.

    A stage runs whole episodes; what it collects beyond its share is deducted from the next one. `rows` is the number of
    parallel episodes (default: as many full-length episodes as a stage holds, between 8 and 64). `max_episode_steps` is a time
    limit instead of the environment's own. `progress` is called with the number of steps collected so far.

    Raises:
        ValueError: fewer steps than stages, or an environment without finite action bounds or a time limit.
    """
    expect_seed("seed", seed)
    if steps < len(stages):
        raise ValueError(f"steps: expected at least one per stage ({len(stages)} stages), got {steps}")
    options: dict[str, Any] = {"physics": physics, "max_episode_steps": max_episode_steps}
    probe = BatchedEnv(env_id, 1, **options)
    limit = probe.max_episode_steps
    probe.close()
    box = ActionBox.of(probe.action_space, env_id, "register it with a wrapper that bounds its actions")
    expect_time_limit(env_id, limit)
    assert limit is not None
    # with full-length episodes, no steps are collected beyond a stage's share
    full = -(-steps // (len(stages) * limit))
    env = BatchedEnv(env_id, rows or min(max(full, 8), 64), threads=threads, **options)
    episodes: list[Episode] = []
    collected = total = 0
    try:
        for number, stage in enumerate(stages):
            total += stage.weight
            wanted = steps * total // sum(stage.weight for stage in stages) - collected
            report = None if progress is None else lambda done, base=collected: progress(base + done)
            found = _run_stage(env, limit, box, stage, [seed, number], wanted, report) if wanted > 0 else []
            episodes += found
            collected += sum(map(len, found))
    finally:
        env.close()
    excess = collected - steps
    if excess > 0:
        episodes[-1] = episodes[-1].first(len(episodes[-1]) - excess)
    return episodes


def _run_stage(
    env: BatchedEnv,
    limit: int,
    box: ActionBox,
    stage: BehaviourStage,
    key: list[int],
    wanted: int,
    progress: Callable[[int], None] | None,
) -> list[Episode]:
    """Episodes 0, 1, 2, ... of a stage until they hold `wanted` steps."""
    n, d, m = env.n, env.state_dim, env.action_dim
    observations = np.empty((n, limit + 1, d))
    actions = np.empty((n, limit, m), np.float32)
    rewards = np.empty((n, limit))
    draws = np.empty((n, limit, m))
    number = np.full(n, -1)  # the episode that each row is running
    finished: dict[int, Episode] = {}
    started, complete, steps = 0, 0, 0  # all episodes before `complete` are finished and hold `steps` steps
    state, rows = np.zeros((n, d)), np.arange(n)
    while True:
        seeds = []
        for row in rows:
            rng = np.random.default_rng([*key, started])
            seeds.append(int(rng.integers(2**31)))
            draws[row] = rng.uniform(-1.0, 1.0, (limit, m)) if stage.policy is None else rng.standard_normal((limit, m))
            number[row] = started
            started += 1
        if len(rows):
            state = env.reset(seeds, rows)
            observations[rows, 0] = state[rows]

        time = env.elapsed.copy()
        every = np.arange(n)
        actions[every, time] = box.from_unit(stage.act(state, draws[every, time]))
        state, reward, terminated, _ = env.step(actions[every, time])
        observations[every, time + 1] = state
        rewards[every, time] = reward

        rows = np.flatnonzero(env.done)
        for row in rows:
            T = int(env.elapsed[row])
            finished[int(number[row])] = Episode(
                observations[row, : T + 1].copy(), actions[row, :T].copy(), rewards[row, :T].copy(), bool(terminated[row])
            )
        while complete in finished:
            steps += len(finished[complete])
            complete += 1
            if progress is not None:
                progress(min(steps, wanted))
            if steps >= wanted:
                return [finished[i] for i in range(complete)]
