"""D4RL's AntMaze as gymnasium environments, without D4RL.

    AntMazeEnv(task="umaze", *, collect=False)   also gymnasium.make("jacrec/antmaze-umaze-v2") once this module is imported
    ENV_IDS: task -> id of the environment that evaluates     COLLECTION_IDS: task -> id of the one that data are made in
    AntMazeEnv.geometry -> Maze

State (29): x, y, z, quaternion (w, x, y, z), angles of hip and ankle of legs 1 to 4, then the 14 velocities; unclipped, and
without the goal. Action (8) in [-1, 1]: torques over 30 of hip and ankle of legs 4, 1, 2, 3. One step is 0.1 s.
Reward 1 and the end of the episode when the torso comes within 0.5 of the goal, else 0; a fall ends nothing. A new goal is
drawn at every reset. The score is 100 × the mean return.

Not to be confused with Gymnasium-Robotics' AntMaze_UMaze-v5 and its like, which `jacrec.envs.physics.make_env` takes too:
there a step is 0.05 s, torques reach 150, contacts are stiffer, the origin is the map's centre and y points up on the map,
the goal's radius is 0.45 and the state holds the goal. Neither data nor scores carry over.
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
    """The ant in one of the six tasks; make it with `make_env`, which also sees to the contacts.

    With `collect` it is what the data are collected in: starts and goals are those of the task's data, the goal's x and y
    follow the 29 numbers of the state, and an episode does not end at the goal.

    Raises:
        ValueError: an unknown task.
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
        # the base class wants the path of an existing file; the text comes from _initialize_simulation
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
        """One tenth of a second; torques are clipped to ±30."""
        self.do_simulation(torque(action), self.frame_skip)
        success = bool(reached(self.data.qpos[:2], self.goal))
        if self.render_mode == "human":
            self.render()
        return self._observation(), float(success), success and not self.collect, False, {"success": success}

    def reset_model(self) -> np.ndarray:
        """A new goal, then the ant at the start with noise; the unit of its quaternion is restored."""
        rng = self.np_random
        goals = self.task.goals if self.collect else (self.geometry.evaluation_goal,)
        self.goal = draw_goal(rng, goals)
        qpos = self.init_qpos + rng.uniform(-0.1, 0.1, self.model.nq)
        qvel = self.init_qvel + 0.1 * rng.standard_normal(self.model.nv)
        if self.collect and self.task.starts is not None:
            qpos[:2] = draw_start(rng, self.task.starts)
        # MuJoCo before 3.4 did this when it computed positions
        _mj.mj_normalizeQuat(self.model, qpos)
        self.model.site("goal").pos[:2] = self.goal
        self.set_state(qpos, qvel)
        return self._observation()

    def _get_reset_info(self) -> dict[str, Any]:
        return {"goal": self.goal.copy()}

    def _observation(self) -> np.ndarray:
        return observe(self.data.qpos, self.data.qvel, self.goal if self.collect else None)


def torque(action: np.ndarray) -> np.ndarray:
    """(..., 8) torques of actions (..., 8)."""
    return TORQUE * np.clip(np.asarray(action, np.float64), -1.0, 1.0)


def observe(qpos: np.ndarray, qvel: np.ndarray, goal: np.ndarray | None) -> np.ndarray:
    """(..., 29) from qpos (..., 15) and qvel (..., 14), or (..., 31) with a goal (..., 2)."""
    return np.concatenate((qpos, qvel) if goal is None else (qpos, qvel, goal), axis=-1)


ENV_IDS = {task: f"jacrec/antmaze-{task}-v2" for task in TASKS}
COLLECTION_IDS = {task: f"jacrec/antmaze-{task}-collect-v2" for task in TASKS}


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
