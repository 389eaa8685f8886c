"""D4RL's AntMaze as gymnasium environments, without D4RL.

Importing this module registers the ids, e.g. ``gymnasium.make("jacrec/antmaze-umaze-v2")``.

State (29): x, y, z, quaternion (w, x, y, z), hip and ankle angles of legs 1 to 4, then the 14 velocities; unclipped,
without the goal. Action (8) in [-1, 1]: torques divided by 30 of the hips and ankles of legs 4, 1, 2, 3. One step is
0.1 s. When the torso comes within 0.5 of the goal, the reward is 1 and the episode ends; otherwise the reward is 0. A fall
does not end the episode. Every reset draws a new goal. The score is 100 × the mean return.

Not to be confused with Gymnasium-Robotics' AntMaze_UMaze-v5 and similar, which `jacrec.envs.physics.make_env` also
builds: there a step is 0.05 s, torques reach 150, contacts are stiffer, the origin is the centre of the map, y points up
on the map, the goal's radius is 0.45 and the state contains the goal. Neither data nor scores are comparable.
"""

from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.envs.mujoco.mujoco_env import MujocoEnv
from gymnasium.utils import EzPickle

from jacrec.envs import antmaze_model
from jacrec.envs.antmaze_layout import MAZES, TASKS, Maze, draw_goal, draw_start, reached
from jacrec.util.errors import expect_one_of

TORQUE = 30.0
FRAME_SKIP = 5
STATE_DIM, ACTION_DIM = 29, 8
_mj: Any = mujoco  # the bindings declare no types


class AntMazeEnv(MujocoEnv, EzPickle):
    """The ant in one of the six tasks. Build it with `make_env`, which also adjusts the contacts.

    With `collect=True` it is the environment that the data are collected in: starts and goals follow the protocol of the
    task's data, the goal's x and y are appended to the 29 numbers of the state, and episodes continue past the goal.

    Raises:
        ValueError: unknown task.
    """

    metadata = AntEnv.metadata | {"render_fps": 10}  # the modes differ between versions of gymnasium

    def __init__(self, task: str = "umaze", *, collect: bool = False, **kwargs):
        expect_one_of("task", task, TASKS)
        EzPickle.__init__(self, task, collect=collect, **kwargs)
        self.task, self.collect = TASKS[task], collect
        self.geometry: Maze = MAZES[self.task.maze]
        self.goal = np.zeros(2)
        width = STATE_DIM + 2 * collect
        if kwargs.get("camera_id") is None:
            kwargs.setdefault("camera_name", "top")
        # the base class requires the path of an existing file; _initialize_simulation builds the model from text
        space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float64)
        MujocoEnv.__init__(self, antmaze_model.__file__, FRAME_SKIP, space, **kwargs)

    def _initialize_simulation(self) -> tuple[Any, Any]:
        model = _mj.MjModel.from_xml_string(antmaze_model.ant_maze_xml(self.geometry))
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self.width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, self.height)
        return model, _mj.MjData(model)

    def _set_action_space(self) -> gymnasium.spaces.Box:
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)
        return self.action_space

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance by 0.1 s; torques are clipped to ±30."""
        self.do_simulation(torque(action), self.frame_skip)
        success = bool(reached(self.data.qpos[:2], self.goal))
        if self.render_mode == "human":
            self.render()
        return self._observation(), float(success), success and not self.collect, False, {"success": success}

    def reset_model(self) -> np.ndarray:
        """Draw a goal, then place the ant at the start with noise and normalise its quaternion."""
        rng = self.np_random
        goals = self.task.goals if self.collect else (self.geometry.evaluation_goal,)
        self.goal = draw_goal(rng, goals)
        qpos = self.init_qpos + rng.uniform(-0.1, 0.1, self.model.nq)
        qvel = self.init_qvel + 0.1 * rng.standard_normal(self.model.nv)
        if self.collect and self.task.starts is not None:
            qpos[:2] = draw_start(rng, self.task.starts)
        # MuJoCo before 3.4 did this when computing positions
        _mj.mj_normalizeQuat(self.model, qpos)
        self.model.site("goal").pos[:2] = self.goal
        self.set_state(qpos, qvel)
        return self._observation()

    def _get_reset_info(self) -> dict[str, Any]:
        return {"goal": self.goal.copy()}

    def _observation(self) -> np.ndarray:
        return observe(self.data.qpos, self.data.qvel, self.goal if self.collect else None)


def torque(action: np.ndarray) -> np.ndarray:
    """Torques (..., 8) of actions (..., 8)."""
    return TORQUE * np.clip(np.asarray(action, np.float64), -1.0, 1.0)


def observe(qpos: np.ndarray, qvel: np.ndarray, goal: np.ndarray | None) -> np.ndarray:
    """States (..., 29) from qpos (..., 15) and qvel (..., 14), or (..., 31) with a goal (..., 2)."""
    return np.concatenate((qpos, qvel) if goal is None else (qpos, qvel, goal), axis=-1)


ENV_IDS = {task: f"jacrec/antmaze-{task}-v2" for task in TASKS}
"""task -> id of the evaluation environment"""
COLLECTION_IDS = {task: f"jacrec/antmaze-{task}-collect-v2" for task in TASKS}
"""task -> id of the environment that data are collected in"""


def _register() -> None:
    for ids, options in ((ENV_IDS, {}), (COLLECTION_IDS, {"collect": True})):
        for task, env_id in ids.items():
            if env_id not in gymnasium.registry:
                gymnasium.register(
                    env_id,
                    entry_point="jacrec.envs.antmaze:AntMazeEnv",
                    max_episode_steps=MAZES[TASKS[task].maze].max_episode_steps,
                    kwargs={"task": task, **options},
                )


_register()
