"""Episodes played in lock-step: one controller, N environments, a queue of seeds."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from jacrec.engine.action_clip import clip_action
from jacrec.engine.shapes import as_observation
from jacrec.envs.actions import expect_time_limit
from jacrec.envs.batch import BatchedEnv


class Controller(Protocol):
    """Chooses the actions: `MPC` or `Planner` with a batch, or a fixed policy (`PolicyController`)."""

    def act(self, observation: np.ndarray, /) -> np.ndarray:
        """(N, d) -> (N, m) in [-1, 1]."""
        ...

    def new_episode(self, rows: Sequence[int] | np.ndarray | None = None) -> None:
        """Called when an episode starts in the given rows (default: all)."""
        ...


class PolicyController:
    """A fixed policy as a controller: the baseline of every comparison. Its actions are clipped to [-1, 1]."""

    def __init__(self, policy: nn.Module):
        self.policy = policy
        self.parameter = next(policy.parameters())

    @torch.no_grad()
    def act(self, observation: np.ndarray, /) -> np.ndarray:
        """(N, d) -> (N, m)."""
        state = as_observation(observation).to(self.parameter)
        return clip_action(self.policy(state), self.policy).cpu().numpy()

    def new_episode(self, rows: Sequence[int] | np.ndarray | None = None) -> None:
        """Do nothing: there is no state to reset."""


@dataclass(frozen=True)
class EpisodeLog:
    """The episodes of one contestant, in order of their seeds."""

    seeds: list[int]
    returns: list[float]
    """undiscounted sums of the environment's rewards"""
    lengths: list[int]
    """steps"""
    terminated: list[bool]
    """whether the task ended the episode (a fall, a goal) rather than the time limit"""
    decisions: int
    """actions taken in running episodes"""
    seconds: float
    """wall time spent in the controller"""
    decisions_per_second: float
    """median over the calls of the controller, without its first: one slow call, such as one that compiles, does not count"""


Watcher = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]
"""called at each decision with observation (N, d), action (N, m), step of each row's episode (N,), running rows (N,)"""


def play(
    env: BatchedEnv,
    controller: Controller,
    seeds: Sequence[int],
    *,
    watch: Watcher | None = None,
    before: Watcher | None = None,
    progress: Callable[[float], None] | None = None,
) -> EpisodeLog:
    """Play one episode per seed; a row whose episode has ended takes the next seed from the queue.

    Every episode is played to its end, so short episodes are not over-represented. With as many rows as seeds, all episodes
    start together. The result depends only on the seeds, the number of rows and the controller.

    Args:
        watch: called after each decision.
        before: called before each decision, with the previous actions (initially zeros).
        progress: called with the fraction of the work done; a finished episode counts fully whatever its length.

    Raises:
        ValueError: no seeds, fewer seeds than rows, or an environment without a time limit.
    """
    seeds = [int(s) for s in seeds]
    if not seeds or len(seeds) < env.n:
        raise ValueError(f"seeds: expected at least one per row ({env.n} rows), got {len(seeds)}; use a smaller BatchedEnv")
    expect_time_limit(env.env_id, env.max_episode_steps)
    queue = list(range(env.n, len(seeds)))
    index = np.arange(env.n)  # the seed that each row plays
    observation = env.reset(seeds[: env.n])
    controller.new_episode()
    totals, action = np.zeros(env.n), np.zeros((env.n, env.action_dim))
    returns, lengths, ended = np.zeros(len(seeds)), np.zeros(len(seeds), int), np.zeros(len(seeds), bool)
    decisions, seconds, finished = 0, 0.0, 0
    rates: list[float] = []
    running = np.ones(env.n, bool)
    limit = env.max_episode_steps
    while running.any():
        step = env.elapsed.copy()
        if before is not None:
            before(observation, action, step, running)
        start = time.perf_counter()
        action = controller.act(observation)
        took = time.perf_counter() - start
        seconds += took
        decisions += int(running.sum())
        rates.append(float(running.sum()) / max(took, 1e-9))
        if watch is not None:
            watch(observation, action, step, running)
        observation, reward, terminated, truncated = env.step(action)
        totals += np.where(running, reward, 0.0)
        over = np.flatnonzero(running & (terminated | truncated))
        for row in over:
            i = index[row]
            returns[i], lengths[i], ended[i] = totals[row], env.elapsed[row], terminated[row]
            finished += 1
            running[row] = bool(queue)
            if queue:
                index[row], totals[row] = queue.pop(0), 0.0
        fresh = over[running[over]]
        if len(fresh):
            observation = env.reset([seeds[i] for i in index[fresh]], fresh)
            controller.new_episode(fresh)
        if progress is not None:
            under_way = (env.elapsed[running] / limit).sum() if limit else 0.0
            progress(float(finished + under_way) / len(seeds))
    rate = float(np.median(rates[1:] or rates))
    return EpisodeLog(seeds, returns.tolist(), lengths.tolist(), ended.tolist(), decisions, seconds, rate)
