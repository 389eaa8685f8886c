"""When an imagined episode is over: the terminations of known environments, read off the observation alone.

    termination_fn(env_id) -> (observation (n, d)) -> (n,) bool, or None

A world model imagines on where the real task has ended: nothing in f_θ says that a hopper has fallen.
"""

from collections.abc import Callable

import numpy as np

from jacrec.envs.batched_tasks import hopper_is_healthy, walker_is_healthy

TerminationFn = Callable[[np.ndarray], np.ndarray]
"""observations (n, d) -> (n,) bool: the task has ended there"""


def termination_fn(env_id: str) -> TerminationFn | None:
    """The termination of Hopper, Walker2d and Ant (gymnasium's, any version); None: it never ends, or jacrec does not know.

    D4RL's AntMaze ends at a goal that is not observed: None.
    """
    return _ENDINGS.get(env_id.rpartition("-v")[0])


def _planar(healthy: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> TerminationFn:
    def ended(observation: np.ndarray) -> np.ndarray:
        # qpos without x, then as many velocities as positions
        positions = (observation.shape[1] + 1) // 2
        x = np.zeros((len(observation), 1))
        return ~healthy(np.concatenate((x, observation[:, : positions - 1]), 1), observation[:, positions - 1 :])

    return ended


def _ant(observation: np.ndarray) -> np.ndarray:
    height = observation[:, 0]
    return ~(np.isfinite(observation).all(1) & (height >= 0.2) & (height <= 1.0))


_ENDINGS: dict[str, TerminationFn] = {
    "Hopper": _planar(hopper_is_healthy),
    "Walker2d": _planar(walker_is_healthy),
    "Ant": _ant,
}
