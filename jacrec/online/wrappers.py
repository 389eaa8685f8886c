"""Wrappers for `jacrec.evaluation.episodes.play`: an environment that records transitions, a controller with hot swap."""

import time
from typing import Any

import numpy as np

from jacrec.envs.batch import BatchedEnv
from jacrec.evaluation.episodes import Controller
from jacrec.online.refresh import Refresher
from jacrec.online.replay_buffer import OnlineReplay


class RecordingEnv:
    """Appends the transitions of an environment to a replay buffer and, optionally, runs in real time.

    Has the interface of `BatchedEnv`; other attributes are forwarded to the environment.

    Args:
        env: the environment, with n rows.
        replay: the replay buffer.
        step_seconds: minimum duration of a step, including the controller's time.
    """

    def __init__(self, env: BatchedEnv, replay: OnlineReplay, step_seconds: float | None = None):
        self.env, self.replay, self.step_seconds = env, replay, step_seconds
        self.episode = np.full(env.n, -1)
        self.next_episode = replay.next_episode
        self.observation = np.zeros((env.n, env.state_dim))
        self.late = 0
        """number of late steps"""
        self._tick: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def reset(self, seeds, rows=None) -> np.ndarray:
        """As `BatchedEnv.reset`; starts new episodes in the replay buffer."""
        self.observation = self.env.reset(seeds, rows)
        rows = np.arange(self.env.n) if rows is None else np.asarray(rows)
        self.episode[rows] = self.next_episode + np.arange(len(rows))
        self.next_episode += len(rows)
        self._tick = None
        return self.observation

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """As `BatchedEnv.step`; also appends the transitions of the running rows."""
        self._wait_for_tick()
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

    def _wait_for_tick(self) -> None:
        if self.step_seconds is None:
            return
        now = time.perf_counter()
        if self._tick is not None and now < self._tick:
            time.sleep(self._tick - now)
        elif self._tick is not None:
            self.late += 1
        self._tick = (now if self._tick is None or now > self._tick else self._tick) + self.step_seconds


class RefreshedController:
    """A controller that installs refreshed weights between two decisions, and measures decision times."""

    def __init__(self, controller: Controller, refresher: Refresher):
        self.controller, self.refresher = controller, refresher
        self.seconds: list[float] = []
        """duration of every decision, including the installation of weights"""
        self.picked_up: list[tuple[int, int]] = []
        """(number of preceding decisions, version) of every installation"""

    def act(self, observation: np.ndarray, /) -> np.ndarray:
        """(N, d) -> (N, m)."""
        began = time.perf_counter()
        if self.refresher.pick_up():
            self.picked_up.append((len(self.seconds), self.refresher.version))
        action = self.controller.act(observation)
        self.seconds.append(time.perf_counter() - began)
        return action

    def new_episode(self, rows=None) -> None:
        """Start new episodes in the controller."""
        self.controller.new_episode(rows)
