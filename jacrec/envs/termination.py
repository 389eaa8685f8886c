"""Termination conditions of known environments, computed from observations alone.

World models do not predict terminations: nothing in f_θ tells that a hopper has fallen.
"""

from collections.abc import Callable

import numpy as np

from jacrec.envs.batched_tasks import hopper_is_healthy, walker_is_healthy

Termination = Callable[[np.ndarray], np.ndarray]
"""maps observations (n, d) to (n,) bool: the task has terminated"""


def termination(env_id: str) -> Termination | None:
    """The termination condition of Hopper, Walker2d and Ant (gymnasium's, any version).

    None if the environment never terminates or is unknown. D4RL's AntMaze terminates at a goal that is not observed: None.
    """
    return _TERMINATIONS.get(env_id.rpartition("-v")[0])


def _planar(healthy: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Termination:
    def ended(observation: np.ndarray) -> np.ndarray:
        # the observation is qpos without x, followed by as many velocities as positions
        positions = (observation.shape[1] + 1) // 2
        x = np.zeros((len(observation), 1))
        return ~healthy(np.concatenate((x, observation[:, : positions - 1]), 1), observation[:, positions - 1 :])

    return ended


def _ant(observation: np.ndarray) -> np.ndarray:
    height = observation[:, 0]
    return ~(np.isfinite(observation).all(1) & (height >= 0.2) & (height <= 1.0))


_TERMINATIONS: dict[str, Termination] = {
    "Hopper": _planar(hopper_is_healthy),
    "Walker2d": _planar(walker_is_healthy),
    "Ant": _ant,
}
