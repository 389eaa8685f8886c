"""Around an environment and a controller, for `jacrec.evaluation.episodes.play`: what happens is kept, new weights are picked up."""

import time
from typing import Any

import numpy as np

from jacrec.control.controller import MPC
from jacrec.envs.batch import BatchedEnv
from jacrec.online.refresh import Refresher
from jacrec.online.replay import OnlineReplay


class RecordedEnv:
    """An environment whose transitions are appended to a replay, and which keeps to the wall clock where asked to.

    It is a `BatchedEnv` for `play`: what it does not know, the environment answers.

    Args:
        env: n rows.
        replay: where to.
        step_seconds: time that a step takes at least, the controller's thinking included.
    """

    def __init__(self, env: BatchedEnv, replay: OnlineReplay, step_seconds: float | None = None):
        self.env, self.replay, self.step_seconds = env, replay, step_seconds
        self.episode = np.full(env.n, -1)
        self.next_episode = replay.next_episode
        self.observation = np.zeros((env.n, env.state_dim))
        self.late = 0
        """steps that came after their time"""
        self._tick: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def reset(self, seeds, rows=None) -> np.ndarray:
        """As `BatchedEnv.reset`; the rows' next transitions are of new episodes."""
        self.observation = self.env.reset(seeds, rows)
        rows = np.arange(self.env.n) if rows is None else np.asarray(rows)
        self.episode[rows] = self.next_episode + np.arange(len(rows))
        self.next_episode += len(rows)
        self._tick = None
        return self.observation

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """As `BatchedEnv.step`; the running rows' transitions are in the replay when it returns."""
        self._keep_time()
        rows = np.flatnonzero(~self.env.done)
        following, reward, terminated, truncated = self.env.step(actions)
        if len(rows):
            self.replay.append(
                self.observation[rows],
                actions[rows],
                reward[rows],
                following[rows],
                terminated[rows],
                self.episode[rows],
                terminated[rows] | truncated[rows],
            )
        self.observation = following
        return following, reward, terminated, truncated

    def _keep_time(self) -> None:
        if self.step_seconds is None:
            return
        now = time.perf_counter()
        if self._tick is not None and now < self._tick:
            time.sleep(self._tick - now)
        elif self._tick is not None:
            self.late += 1
        self._tick = (now if self._tick is None or now > self._tick else self._tick) + self.step_seconds


class RefreshedController:
    """A controller that picks up new weights between two decisions, with a clock for each decision."""

    def __init__(self, controller: MPC, refresher: Refresher):
        self.controller, self.refresher = controller, refresher
        self.seconds: list[float] = []
        """of every decision, picking up included"""
        self.picked_up: list[tuple[int, int]] = []
        """(decisions before it, version)"""

    def act(self, observation: np.ndarray, /) -> np.ndarray:
        """(N, d) -> (N, m)."""
        began = time.perf_counter()
        if self.refresher.pick_up():
            self.picked_up.append((len(self.seconds), self.refresher.version))
        action = self.controller.act(observation)
        self.seconds.append(time.perf_counter() - began)
        return action

    def new_episode(self, rows=None) -> None:
        """As the controller's."""
        self.controller.new_episode(rows)
