"""Build environments with the contact physics that D4RL's data sets were recorded with.

MuJoCo 3.5 changed the contact margin of two geoms from the larger of their margins to the sum. In Hopper, Ant and the
mazes both geoms have the same margin, so contacts start at twice the distance, and a state differs by about 1e-2 after
one step. Halving `model.geom_margin` restores the old physics exactly. HalfCheetah and Walker2d have no margins.
"""

import importlib.util
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np

from jacrec.envs.ogbench import is_single_task, ogbench
from jacrec.util.caller import warn_caller
from jacrec.util.errors import expect_one_of

PHYSICS = ("d4rl", "native")
_mj: Any = mujoco  # the bindings declare no types


class ContactPhysics(gymnasium.Wrapper):
    """Applies the contact-margin compatibility once, to a newly built environment, and records it."""

    def __init__(self, env: gymnasium.Env, physics: str):
        super().__init__(env)
        model = getattr(simulator(env), "model", None)
        halved = physics == "d4rl" and model is not None and margins_are_summed() and bool(np.any(model.geom_margin))
        if halved and model is not None:
            model.geom_margin[:] *= 0.5
        self.physics = {"mujoco": mujoco.__version__, "physics": physics, "margins_halved": halved}


class GoalInState(gymnasium.ObservationWrapper):
    """Flattens a goal environment's dict observation into one state vector, see `goal_in_state`."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        spaces: Any = env.observation_space
        self.with_position = needs_achieved_goal(env.spec.id if env.spec else None)
        keys = (*(("achieved_goal",) if self.with_position else ()), "observation", "desired_goal")
        size = sum(spaces[key].shape[0] for key in keys)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float64)

    def observation(self, observation: dict) -> np.ndarray:
        return goal_in_state(observation, with_position=self.with_position)


def goal_in_state(observation: dict, *, with_position: bool = False) -> np.ndarray:
    """Flatten a goal environment's dict to (..., d + g): `observation` followed by `desired_goal`.

    `with_position` prepends `achieved_goal`, for environments whose observation lacks the position (`needs_achieved_goal`).
    """
    front = (observation["achieved_goal"],) if with_position else ()
    return np.concatenate((*front, observation["observation"], observation["desired_goal"]), axis=-1)


def needs_achieved_goal(env_id: str | None) -> bool:
    """Whether only `achieved_goal` contains the position: true for Gymnasium-Robotics' AntMaze, unlike PointMaze."""
    return env_id is not None and env_id.startswith("AntMaze_")


def is_goal_space(space: gymnasium.Space) -> bool:
    """Whether observations are a goal environment's dict, which jacrec flattens into one state vector."""
    return isinstance(space, gymnasium.spaces.Dict) and {"observation", "desired_goal"} <= set(space.spaces)


def margins_are_summed(version: str = mujoco.__version__) -> bool:
    """Whether this MuJoCo version adds the contact margins of two geoms (3.5 and later)."""
    return tuple(int(part) for part in version.split(".")[:2]) >= (3, 5)


def make_env(env_id: str, *, physics: str = "d4rl", **kwargs) -> gymnasium.Env:
    """Build a gymnasium environment.

    D4RL's data belong to the ``-v4`` environments: ``-v5`` changed Walker2d's friction and the healthy rewards. gymnasium's
    deprecation warning for them is therefore suppressed. Goal environments (PointMaze and AntMaze of Gymnasium-Robotics) are
    wrapped so that the state contains the goal (`goal_in_state`). D4RL's AntMaze is ``jacrec/antmaze-umaze-v2`` and similar;
    `jacrec.envs.antmaze` lists the differences to Gymnasium-Robotics' AntMaze. OGBench's single tasks, such as
    ``cube-single-singletask-v0``, were recorded with MuJoCo before 3.5 as well.

    Args:
        physics: "d4rl" (contacts as before MuJoCo 3.5) or "native" (as in the installed MuJoCo).
        kwargs: passed to `gymnasium.make`, e.g. ``render_mode="rgb_array"``.

    Raises:
        ValueError: unknown `physics`, or an id unknown to gymnasium.
    """
    expect_one_of("physics", physics, PHYSICS)
    if env_id.startswith("jacrec/"):
        import jacrec.envs.antmaze  # noqa: F401  registers its ids
    elif env_id.startswith(("PointMaze", "AntMaze")):
        _register_mazes(env_id)
    elif is_single_task(env_id):
        ogbench()
    with warnings.catch_warnings(), _quiet_compiler():
        warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)
        try:
            env = gymnasium.make(env_id, **kwargs)
            if is_single_task(env_id):
                env.reset(seed=0)  # OGBench builds the models of some only now
        except gymnasium.error.UnregisteredEnv as error:
            raise ValueError(
                "env_id: expected a registered id such as 'Hopper-v4', 'HalfCheetah-v4', 'PointMaze_UMaze-v3' or, for D4RL's "
                f"AntMaze, 'jacrec/antmaze-umaze-v2', got {env_id!r} ({error})"
            ) from error
    leftover = getattr(env.unwrapped, "tmp_xml_file_path", None)
    if leftover is not None:
        # each maze writes its model to the temporary folder, compiles it and leaves it there
        Path(leftover).unlink(missing_ok=True)
    env = ContactPhysics(env, physics)
    return GoalInState(env) if is_goal_space(env.observation_space) else env


def physics_record(env: gymnasium.Env) -> dict[str, Any]:
    """The physics of an environment built by `make_env`: MuJoCo version, requested physics, whether margins were halved.

    Raises:
        ValueError: the environment was not built by `make_env`.
    """
    if not env.has_wrapper_attr("physics"):
        raise ValueError(f"env: expected an environment built by jacrec.envs.physics.make_env, got {env}")
    return dict(env.get_wrapper_attr("physics"))


@dataclass(frozen=True)
class PhysicsCheck:
    """Result of `check_physics`."""

    ok: bool
    """the compatible physics reproduce the reference"""
    error: float
    """largest difference in a position or velocity after one step, with the compatibility"""
    native_error: float
    """the same without the compatibility, for comparison"""
    message: str
    """one sentence for `jacrec doctor`, with a remedy if the check fails"""


# (qpos, qvel, action) of three Hopper states with the foot on the floor ...
_PROBES = (
    ([0.0, 1.205, 0.0, 0.0, 0.0, 0.0], [0.5, -0.8, 0.0, 0.0, 0.0, 0.0], [0.3, -0.6, 0.9]),
    ([0.1, 1.2115, 0.02, 0.0, 0.0, -0.02], [1.0, -0.6, 0.2, -0.4, -0.5, 0.5], [1.0, 0.5, -1.0]),
    ([0.0, 1.2, 0.05, -0.1, -0.05, 0.1], [0.5, 0.5, 0.0, 0.5, 0.5, -0.5], [-0.8, 0.7, 0.4]),
)
# ... and (qpos, qvel) one environment step (four substeps) later, computed with MuJoCo 2.3.7 on gymnasium's hopper.xml:
# mj_resetData, set qpos and qvel, mj_forward, set ctrl, 4 x mj_step; rounded to 12 decimals
_REFERENCE = (
    (
        [0.004032024101, 1.199864678612, -0.000219602844, 0.000406495096, -0.004030156163, 0.00514740437],
        [0.502967681596, -0.498812144325, -0.125634223049, 0.053206377842, -1.000225305095, 1.256297381821],
    ),
    (
        [0.108053835003, 1.207475361139, 0.02696243926, 0.001297921357, -0.000188743523, -0.018649911045],
        [0.993437183033, -0.40656085986, 1.197368259008, 0.30718092974, 0.487720152789, -0.15906998155],
    ),
    (
        [0.004418820173, 1.203852676137, 0.049062990283, -0.101357326547, -0.042453309016, 0.09891901491],
        [0.5989011424, 0.457510732477, -0.261277290993, -0.831646234236, 1.395140554369, 0.21348748838],
    ),
)


def check_physics() -> PhysicsCheck:
    """Compare one Hopper step in contact with reference values from MuJoCo 2.3.7, with and without the compatibility."""
    error, native_error = _probe_error("d4rl"), _probe_error("native")
    ok = error <= 1e-10
    if ok:
        message = f"contacts reproduce the reference physics to {error:.0e} (without the compatibility: {native_error:.0e})"
    else:
        message = (
            f"one step of Hopper: expected a difference to the reference of at most 1e-10, got {error:.1e} with MuJoCo "
            f"{mujoco.__version__}; scores on this machine are not comparable with D4RL's: "
            "install mujoco>=3.17,<4 and an unmodified gymnasium"
        )
    return PhysicsCheck(ok, error, native_error, message)


def _probe_error(physics: str) -> float:
    env = make_env("Hopper-v4", physics=physics)
    core = simulator(env)
    worst = 0.0
    for (qpos, qvel, action), (qpos_after, qvel_after) in zip(_PROBES, _REFERENCE, strict=True):
        env.reset(seed=0)
        _mj.mj_resetData(core.model, core.data)
        core.set_state(np.array(qpos), np.array(qvel))
        env.step(np.array(action))
        difference = np.concatenate((core.data.qpos - qpos_after, core.data.qvel - qvel_after))
        worst = max(worst, float(np.abs(difference).max()))
    env.close()
    return worst


def simulator(env: gymnasium.Env) -> Any:
    """The object that holds MuJoCo's model, its data and `dt`: the environment, or the robot inside a maze."""
    core: Any = env.unwrapped
    return getattr(core, "point_env", None) or getattr(core, "ant_env", None) or core


@contextmanager
def _quiet_compiler() -> Iterator[None]:
    """Turn MuJoCo's compiler warnings into Python warnings, and drop the one about gymnasium's own XML.

    By default MuJoCo prints them and appends to MUJOCO_LOG.TXT in the working directory.
    """

    def warn(message: str) -> None:
        if "settotalmass" not in message:
            warn_caller(message, RuntimeWarning)

    before = _mj.get_mju_user_warning()
    _mj.set_mju_user_warning(warn)
    try:
        yield
    finally:
        _mj.set_mju_user_warning(before)


def _register_mazes(env_id: str) -> None:
    if importlib.util.find_spec("gymnasium_robotics") is None:
        raise ValueError(f"env_id: {env_id!r} requires gymnasium-robotics, which is not installed; pip install 'jacrec[maze]'")
    if env_id not in gymnasium.registry:
        # importing it prints a notice about its hand environments
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            import gymnasium_robotics
        gymnasium.register_envs(gymnasium_robotics)
