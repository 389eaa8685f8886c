"""The MuJoCo model of D4RL's AntMaze against D4RL's own, and its physics against MuJoCo 2.3.7."""

from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest

from jacrec.envs.antmaze_layout import MAZES
from jacrec.envs.antmaze_model import ant_maze_xml
from jacrec.envs.physics import make_env, physics_record

_mj = mujoco


def d4rl_xml(maze) -> str:
    """gymnasium's ant.xml with D4RL's changes and D4RL's walls."""
    path = Path(gymnasium.__file__).parent / "envs/mujoco/assets/ant.xml"
    xml = path.read_text().replace('timestep="0.01"', 'timestep="0.02"').replace('gear="150"', "")
    xml = xml.replace('ctrlrange="-1.0 1.0"', 'ctrlrange="-30.0 30.0"')
    xml = xml.replace('density="5.0"', 'density="5.0" solref=".02 1" solimp=".8 .8 .01"')
    walls = [
        f'<geom type="box" pos="{j * 4 - 4} {i * 4 - 4} 1" size="2 2 1" contype="1" conaffinity="1"/>'
        for i, row in enumerate(maze.walls)
        for j, mark in enumerate(row)
        if mark == "#"
    ]
    return xml.replace("</worldbody>", "".join(walls) + "</worldbody>")


PHYSICAL = {
    "body": "mass inertia pos quat ipos iquat",
    "dof": "armature damping",
    "jnt": "axis pos range limited solref solimp margin",
    "geom": "type size pos quat contype conaffinity condim friction margin gap solref solimp priority",
    "actuator": "trnid gear ctrlrange ctrllimited gainprm biasprm",
}


@pytest.mark.parametrize("name", MAZES)
def test_the_model_equals_d4rls(name, recwarn):
    ours = _mj.MjModel.from_xml_string(ant_maze_xml(MAZES[name]))
    theirs = _mj.MjModel.from_xml_string(d4rl_xml(MAZES[name]))
    assert np.array_equal(ours.qpos0, theirs.qpos0)
    for field in (f"{part}_{name}" for part, names in PHYSICAL.items() for name in names.split()):
        assert np.array_equal(getattr(ours, field), getattr(theirs, field)), field
    for field in ("timestep", "integrator", "gravity", "solver", "iterations", "tolerance", "cone", "impratio", "disableflags"):
        assert np.array_equal(getattr(ours.opt, field), getattr(theirs.opt, field)), field
    assert [ours.joint(i).name for i in range(9)] == [theirs.joint(i).name for i in range(9)]
    assert ours.body_mass.sum() == pytest.approx(0.911, abs=5e-4)


# (qpos, qvel, action) of three states of a walk, feet on the floor, and (qpos, qvel) one environment step later in MuJoCo
# 2.3.7: this package's model, mj_normalizeQuat, mj_forward, ctrl = 30 action, 5 x mj_step; rounded to 12 decimals
# fmt: off
PROBES = (
    ((
        [-0.834, 0.572, 0.611, 0.987, 0.034, 0.064, 0.143, -0.117, 1.113, 0.057, -0.74, -0.007, -1.238, -0.182, 0.701],
        [-0.362, 0.796, 0.826, -0.815, 0.1, 1.906, -4.186, -1.314, 4.488, 3.033, 3.074, -2.203, -4.719, 1.454],
        [0.52, 0.8, 0.38, -0.24, -0.39, -0.4, -0.06, 0.47],
    ), (
        [-0.865648356886, 0.646628343275, 0.648973174347, 0.978208566509, 0.009474257781, 0.044157547738,
         0.202653274896, -0.45949204858, 0.955359459352, 0.424074655236, -0.510055991415, 0.278218696116,
         -1.230085666561, -0.542869072067, 0.954673666367],
        [0.066106741547, 0.833078475708, -0.060692148698, -0.202480293787, -0.561883348093, -0.788696222962,
         -2.652065996269, -1.836045544748, 2.805015649752, 1.298323239559, 2.651700049152, 1.001040805217,
         -1.255071915764, 3.584337750126],
    )),
    ((
        [-1.015, 0.544, 0.643, 0.984, -0.104, 0.06, -0.134, 0.152, 0.626, -0.14, -1.123, -0.05, -0.633, 0.247, 1.194],
        [1.009, -0.906, 0.084, -0.701, -2.724, 0.183, 4.293, 2.074, -4.389, -3.243, -3.337, 2.631, 4.161, -1.271],
        [-0.61, -0.38, -0.43, 0.83, 0.49, 0.47, 0.23, -0.54],
    ), (
        [-0.896703468686, 0.443184331089, 0.661283032207, 0.996127286815, 0.006109602248, 0.057124072683,
         -0.066557806019, 0.483558954806, 0.939710199375, -0.474844797888, -1.253355632273, -0.32664723517,
         -0.495143554932, 0.542529585745, 1.014059067919],
        [1.267856768888, -0.908502195098, -0.304940975318, 2.574849903546, 0.723154262791, 1.918312487769,
         2.518326914024, 4.193022339973, -2.459516789511, 0.396703626759, -2.294471763207, -0.153438426608,
         0.914275101674, -2.28089660359],
    )),
    ((
        [-0.923, 0.225, 0.58, 0.996, 0.045, 0.056, -0.056, 0.469, 1.144, -0.423, -1.086, -0.511, -0.611, 0.481, 0.692],
        [-0.051, -0.12, -0.022, 1.889, 0.873, -0.206, -2.145, 2.855, 1.0, 1.902, 1.733, -2.077, -1.288, -1.914],
        [-1.0, 0.49, -0.67, -0.39, 1.0, 0.31, 0.74, -0.64],
    ), (
        [-0.934318471649, 0.247856022608, 0.571791856563, 0.992558097272, 0.114766542285, 0.023356725468,
         -0.033339581401, 0.167610223658, 1.241778149398, -0.186137314662, -0.859340720275, -0.241260158946,
         -0.898574961332, 0.223701616779, 0.579382214243],
        [-0.124408947796, 0.559459863487, -0.123117147809, 0.575496441717, -0.618201366027, 0.81955265496,
         -3.854288769767, -0.377402592401, 3.693995653521, 2.617305613677, 3.576226992963, -3.598930347486,
         -3.784250982947, -0.40269828448],
    )),
)


# fmt: on
@pytest.mark.parametrize(("start", "end"), PROBES)
def test_a_step_equals_old_mujoco(start, end):
    env = make_env("jacrec/antmaze-umaze-v2")
    env.reset(seed=0)
    core = env.unwrapped
    _mj.mj_resetData(core.model, core.data)
    qpos, qvel, action = map(np.array, start)
    _mj.mj_normalizeQuat(core.model, qpos)
    core.set_state(qpos, qvel)
    assert core.data.ncon > 0
    state, *_ = env.step(action)
    assert np.abs(state - np.concatenate(end)).max() < 1e-10
    assert physics_record(env)["margins_halved"]
