"""Reward, termination and observation of environment classes, vectorised over rows.

The results are bit-identical to those of the class: the same operations on the same numbers in the same order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from gymnasium.envs.mujoco.ant_v4 import AntEnv as AntV4
from gymnasium.envs.mujoco.half_cheetah_v4 import HalfCheetahEnv as HalfCheetahV4
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv as HalfCheetahV5
from gymnasium.envs.mujoco.hopper_v4 import HopperEnv as HopperV4
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv as HopperV5
from gymnasium.envs.mujoco.walker2d_v4 import Walker2dEnv as Walker2dV4
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv as Walker2dV5

from jacrec.envs.antmaze import AntMazeEnv, observe, torque
from jacrec.envs.antmaze_layout import reached

StepResult = tuple[np.ndarray, np.ndarray, np.ndarray]
"""observation (k, d), reward (k,), terminated (k,)"""


class BatchedTask(Protocol):
    """What turns a batch of MuJoCo simulations into a batch of environments."""

    def reset(self, row: int) -> None:
        """The template environment was just reset for this row: store what the simulator's state does not contain."""
        ...

    def control(self, actions: np.ndarray, /) -> np.ndarray:
        """Map actions (k, m) to MuJoCo's controls (k, m)."""
        ...

    def step(self, rows: np.ndarray, qpos: np.ndarray, actions: np.ndarray, /) -> StepResult:
        """Evaluate `rows` (k,), stepped with `actions` (k, m) from positions `qpos` (k, nq)."""
        ...


@dataclass(frozen=True)
class PlanarSettings:
    """Reward and termination settings of a planar locomotion class."""

    control_cost: float
    velocity_limit: float = np.inf
    healthy: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    """(qpos, qvel) -> (k,) bool; None: never terminates, no healthy reward"""
    reward_when_unhealthy: bool = True
    """the -v4 classes give the healthy reward on the terminal step too"""


class PlanarTask:
    """Hopper, HalfCheetah and Walker2d."""

    def __init__(self, settings: PlanarSettings, env: Any, batch: Any):
        self.settings, self.dt = settings, env.dt
        self.qpos, self.qvel = batch.bind("qpos"), batch.bind("qvel")

    def reset(self, row: int) -> None:
        """Nothing to store: the simulator's state is complete."""

    def control(self, actions: np.ndarray, /) -> np.ndarray:
        return actions

    def step(self, rows: np.ndarray, qpos: np.ndarray, actions: np.ndarray, /) -> StepResult:
        settings, before = self.settings, qpos[:, 0]
        qpos, qvel = self.qpos[rows], self.qvel[rows]
        observation = np.concatenate((qpos[:, 1:], np.clip(qvel, -settings.velocity_limit, settings.velocity_limit)), axis=1)
        reward = (qpos[:, 0] - before) / self.dt
        terminated = np.zeros(len(rows), bool)
        if settings.healthy is not None:
            terminated = ~settings.healthy(qpos, qvel)
            reward = reward + (1.0 if settings.reward_when_unhealthy else np.where(terminated, 0.0, 1.0))
        return observation, reward - settings.control_cost * np.square(actions).sum(1), terminated


class AntTask:
    """Ant-v4, whose reward uses the torso's position at the beginning of the last substep."""

    def __init__(self, env: Any, batch: Any):
        self.env, self.torso = env, int(env.model.body("torso").id)
        self.qpos, self.qvel, self.xpos = (batch.bind(name) for name in ("qpos", "qvel", "xpos"))
        self.x = np.zeros(len(self.qpos))

    def reset(self, row: int) -> None:
        self.x[row] = self.env.data.xpos[self.torso, 0]

    def control(self, actions: np.ndarray, /) -> np.ndarray:
        return actions

    def step(self, rows: np.ndarray, qpos: np.ndarray, actions: np.ndarray, /) -> StepResult:
        qpos, qvel = self.qpos[rows], self.qvel[rows]
        before, self.x[rows] = self.x[rows], self.xpos[rows, self.torso, 0]
        healthy = np.isfinite(qpos).all(1) & np.isfinite(qvel).all(1) & (qpos[:, 2] >= 0.2) & (qpos[:, 2] <= 1.0)
        reward = (self.x[rows] - before) / self.env.dt + 1.0 - 0.5 * np.square(actions).sum(1)
        return np.concatenate((qpos[:, 2:], qvel), axis=1), reward, ~healthy


class AntMazeTask:
    """D4RL's AntMaze; every row has its own goal."""

    def __init__(self, env: AntMazeEnv, batch: Any):
        self.env = env
        self.qpos, self.qvel = batch.bind("qpos"), batch.bind("qvel")
        self.goal = np.zeros((len(self.qpos), 2))

    def reset(self, row: int) -> None:
        self.goal[row] = self.env.goal

    def control(self, actions: np.ndarray, /) -> np.ndarray:
        return torque(actions)

    def step(self, rows: np.ndarray, qpos: np.ndarray, actions: np.ndarray, /) -> StepResult:
        qpos, goal = self.qpos[rows], self.goal[rows]
        success = reached(qpos[:, :2], goal)
        observation = observe(qpos, self.qvel[rows], goal if self.env.collect else None)
        return observation, success.astype(np.float64), success & (not self.env.collect)


def hopper_is_healthy(qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    bounded = (np.abs(qpos[:, 2:]) < 100).all(1) & (np.abs(qvel) < 100).all(1)
    return bounded & (qpos[:, 1] > 0.7) & (np.abs(qpos[:, 2]) < 0.2)


def walker_is_healthy(qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    return (qpos[:, 1] > 0.8) & (qpos[:, 1] < 2.0) & (np.abs(qpos[:, 2]) < 1.0)


def _planar(*args: Any, **kwargs: Any) -> Callable[[Any, Any], BatchedTask]:
    settings = PlanarSettings(*args, **kwargs)
    return lambda env, batch: PlanarTask(settings, env, batch)


BATCHED_TASKS: dict[type, Callable[[Any, Any], BatchedTask]] = {
    HopperV4: _planar(1e-3, 10.0, hopper_is_healthy),
    HopperV5: _planar(1e-3, 10.0, hopper_is_healthy, reward_when_unhealthy=False),
    HalfCheetahV4: _planar(0.1),
    HalfCheetahV5: _planar(0.1),
    Walker2dV4: _planar(1e-3, 10.0, walker_is_healthy),
    Walker2dV5: _planar(1e-3, 10.0, walker_is_healthy, reward_when_unhealthy=False),
    AntV4: AntTask,
    AntMazeEnv: AntMazeTask,
}
"""environment class -> (environment, mujoco.batch.Batch) -> BatchedTask"""
