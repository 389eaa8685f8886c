"""Episodes in lock-step: one controller, N environments, a queue of seeds."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from jacrec.envs.batch import BatchedEnv


class Controller(Protocol):
    """What plays episodes: `MPC` with a batch, or a fixed policy (`PolicyController`)."""

    def act(self, observation: np.ndarray, /) -> np.ndarray:
        """(N, d) -> (N, m) in [-1, 1]."""
        ...

    def new_episode(self, rows: Sequence[int] | np.ndarray | None = None) -> None:
        """An episode begins in the given rows, or in all."""
        ...


class PolicyController:
    """A fixed policy as a controller: the base that every other contestant is compared with."""

    def __init__(self, policy: nn.Module):
        self.policy = policy
        self.parameter = next(policy.parameters())

    @torch.no_grad()
    def act(self, observation: np.ndarray, /) -> np.ndarray:
        """(N, d) -> (N, m)."""
        return self.policy(torch.as_tensor(observation).to(self.parameter)).cpu().numpy()

    def new_episode(self, rows: Sequence[int] | np.ndarray | None = None) -> None:
        """Nothing to restore."""


@dataclass(frozen=True)
class EpisodeLog:
    """The episodes of one contestant, in the order of their seeds."""

    seeds: list[int]
    returns: list[float]
    """undiscounted sum of the environment's rewards"""
    lengths: list[int]
    """steps; the limit of the environment where the episode did not end earlier"""
    terminated: list[bool]
    """whether the task ended the episode (a fall, a goal), rather than its time limit"""
    decisions: int
    """actions taken in running episodes"""
    seconds: float
    """wall time spent in the controller alone"""


Watcher = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]
"""called after each decision with observation (N, d), action (N, m), step of each row's episode (N,), running rows (N,)"""


def play(
    env: BatchedEnv,
    controller: Controller,
    seeds: Sequence[int],
    *,
    watch: Watcher | None = None,
    before: Watcher | None = None,
    progress: Callable[[float], None] | None = None,
) -> EpisodeLog:
    """Play one episode per seed; a row whose episode is over takes the next seed of the queue.

    Every episode is played to its end, so that short ones are not favoured. With the rows of `env` as many as seeds, all
    start together. The result depends on the seeds, the number of rows and the controller alone.

    Args:
        watch, before: called around each decision; `before` gets the previous actions (zeros at first).
        progress: called with the share of the work done, counting every finished episode as a full one.

    Raises:
        ValueError: no seeds, or fewer seeds than rows.
    """
    seeds = [int(s) for s in seeds]
    if not seeds or len(seeds) < env.n:
        raise ValueError(f"seeds: expected at least one per row ({env.n} rows), got {len(seeds)}; make a smaller BatchedEnv")
    queue = list(range(env.n, len(seeds)))
    index = np.arange(env.n)  # which seed each row plays
    observation = env.reset(seeds[: env.n])
    controller.new_episode()
    totals, action = np.zeros(env.n), np.zeros((env.n, env.action_dim))
    returns, lengths, ended = np.zeros(len(seeds)), np.zeros(len(seeds), int), np.zeros(len(seeds), bool)
    decisions, seconds, finished = 0, 0.0, 0
    running = np.ones(env.n, bool)
    limit = env.max_episode_steps
    while running.any():
        step = env.elapsed.copy()
        if before is not None:
            before(observation, action, step, running)
        start = time.perf_counter()
        action = controller.act(observation)
        seconds += time.perf_counter() - start
        decisions += int(running.sum())
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
    return EpisodeLog(seeds, returns.tolist(), lengths.tolist(), ended.tolist(), decisions, seconds)
