"""D4RL's AntMaze: model, geometry, starts, goals, reward, ends."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from jacrec.data.behaviour.antmaze_gait import load_gait
from jacrec.data.behaviour.maze import shortest_ways
from jacrec.data.references import reference_by_env
from jacrec.envs.antmaze import COLLECTION_IDS, ENV_IDS, AntMazeEnv, torque
from jacrec.envs.antmaze_layout import MAZES, TASKS, centre, draw_goal, draw_start, reached
from jacrec.envs.antmaze_model import ant_maze_xml
from jacrec.envs.physics import make_env, physics_record
from jacrec.evaluation.rendering import probe, run_renderer

TASK_NAMES = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
GOAL_CELLS = {"umaze": (3, 1), "medium": (6, 6), "large": (7, 9)}
FREE = {"umaze": 7, "medium": 26, "large": 46}
WAY = {"umaze": 6, "medium": 10, "large": 14}  # cells between start and goal
_mj = mujoco


def make(task="umaze", *, collect=False, **kwargs):
    return make_env((COLLECTION_IDS if collect else ENV_IDS)[task], **kwargs)


def place(env, xy, angle=0.0):
    """Put the ant somewhere, standing still."""
    core = env.unwrapped
    qpos = core.init_qpos.copy()
    qpos[:2] = xy
    qpos[3:7] = np.cos(angle / 2), 0, 0, np.sin(angle / 2)
    qpos[8::2] = 0.8, -0.8, -0.8, 0.8  # within the ankles' limits, other than at a reset
    core.set_state(qpos, np.zeros(14))


# --- the model


def d4rl_xml(maze) -> str:
    """gymnasium's ant.xml with what D4RL has different, and D4RL's walls."""
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
def test_model_is_that_of_d4rl(name, recwarn):
    ours = _mj.MjModel.from_xml_string(ant_maze_xml(MAZES[name]))
    theirs = _mj.MjModel.from_xml_string(d4rl_xml(MAZES[name]))
    assert np.array_equal(ours.qpos0, theirs.qpos0)
    for field in (f"{part}_{name}" for part, names in PHYSICAL.items() for name in names.split()):
        assert np.array_equal(getattr(ours, field), getattr(theirs, field)), field
    for field in ("timestep", "integrator", "gravity", "solver", "iterations", "tolerance", "cone", "impratio", "disableflags"):
        assert np.array_equal(getattr(ours.opt, field), getattr(theirs.opt, field)), field
    assert [ours.joint(i).name for i in range(9)] == [theirs.joint(i).name for i in range(9)]
    assert ours.body_mass.sum() == pytest.approx(0.911, abs=5e-4)


# (qpos, qvel, action) of three states of a walk, feet on the floor, and what MuJoCo 2.3.7 makes of them in one environment
# step: this package's model compiled by it, mj_normalizeQuat, mj_forward, ctrl = 30 action, 5 x mj_step; to 12 decimals
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
def test_a_step_is_that_of_old_mujoco(start, end):
    env = make()
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


# --- geometry


@pytest.mark.parametrize("name", MAZES)
def test_mazes_are_closed_and_connected(name):
    maze = MAZES[name]
    free = maze.free
    assert not np.concatenate((free[0], free[-1], free[:, 0], free[:, -1])).any()
    assert free.shape == {"umaze": (5, 5), "medium": (8, 8), "large": (9, 12)}[name]
    assert free.sum() == FREE[name]
    assert maze.evaluation_goal == GOAL_CELLS[name]
    assert free[1, 1]
    assert all(free[cell] for cell in maze.training_goals)
    ways = shortest_ways(free)
    cell, steps = (1, 1), 0
    while cell != maze.evaluation_goal:
        cell, steps = tuple(ways[(*cell, *maze.evaluation_goal)]), steps + 1
    assert steps == WAY[name]
    for start in maze.free_cells:
        assert start == (1, 1) or (ways[(*start, 1, 1)] >= 0).all()


@given(st.sampled_from(sorted(MAZES)), st.data())
def test_cells_and_positions_agree(name, data):
    maze = MAZES[name]
    cell = data.draw(st.sampled_from(maze.free_cells + maze.blocks))
    offset = data.draw(st.tuples(*[st.floats(-1.99, 1.99)] * 2))
    assert tuple(maze.cell_of(centre(cell) + np.array(offset))) == cell
    assert centre((1, 1)).tolist() == [0, 0]
    assert centre(cell).tolist() == [4 * (cell[1] - 1), 4 * (cell[0] - 1)]
    assert tuple(maze.cell_of(np.array([-1e3, 1e3]))) == (maze.free.shape[0] - 1, 0)


@pytest.mark.parametrize("way", [0.0, np.pi / 2, np.pi, 3 * np.pi / 2])
def test_nobody_walks_through_walls(way):
    env, gait = make(), load_gait()
    env.reset(seed=3)
    state = None
    place(env, centre((1, 2)) if way in (np.pi / 2, 3 * np.pi / 2) else centre((2, 3)))
    state = env.unwrapped.state_vector()
    walls = set()
    for _ in range(60):
        state, *_ = env.step(gait(state[None], np.array([way]))[0])
        data = env.unwrapped.data
        for k in range(data.ncon):
            walls |= {env.unwrapped.model.geom(int(g)).name for g in data.contact[k].geom}
    assert any(name.startswith("wall") for name in walls)
    cell = env.unwrapped.geometry.cell_of(state[:2])
    assert env.unwrapped.geometry.free[tuple(cell)]
    assert np.abs(state[:2] - centre(cell)).max() < 2.0


# --- spaces, observation, action


@pytest.mark.parametrize("task", TASK_NAMES)
def test_environments_are_gymnasium_environments(task):
    for collect in (False, True):
        env = make(task, collect=collect)
        assert env.observation_space == gymnasium.spaces.Box(-np.inf, np.inf, (31 if collect else 29,), np.float64)
        assert env.action_space == gymnasium.spaces.Box(-1, 1, (8,), np.float32)
        assert env.spec.max_episode_steps == (700 if task.startswith("umaze") else 1000)
        assert env.unwrapped.dt == pytest.approx(0.1)
        assert isinstance(env.unwrapped, AntMazeEnv)
    assert set(TASKS) == set(ENV_IDS) == set(TASK_NAMES)


@pytest.mark.filterwarnings("ignore:.*A Box observation space m:UserWarning")
def test_gymnasiums_own_checker_is_content():
    check_env(AntMazeEnv("medium-play"), skip_render_check=True)


def test_state_is_positions_then_velocities_and_the_goal_where_data_are_collected():
    for collect in (False, True):
        env = make(collect=collect)
        state, info = env.reset(seed=1)
        for _ in range(3):
            data = env.unwrapped.data
            assert np.array_equal(state[:29], np.concatenate((data.qpos[:15], data.qvel[:14])))
            assert not collect or np.array_equal(state[29:], info["goal"])
            state, *_ = env.step(np.full(8, 0.3))


def test_actuators_are_legs_4_1_2_3_hip_before_ankle():
    env = make()
    env.reset(seed=0)
    core = env.unwrapped
    names = [f"{joint}_{leg}" for leg in (4, 1, 2, 3) for joint in ("hip", "ankle")]
    for k, name in enumerate(names):
        place(env, (0, 0))
        core.data.qpos[2] = 5.0  # in the air nothing else pushes
        env.step(np.eye(8)[k])
        speed = core.data.qvel[6:]
        dof = core.model.joint(name).dofadr[0] - 6
        assert core.data.ctrl[k] == 30.0
        assert speed[dof] > 0.5
        assert np.abs(np.delete(speed, dof)).max() < 0.5 * speed[dof]


def test_actions_beyond_one_are_clipped():
    assert torque(np.array([2.0, -7.0, 0.5])).tolist() == [30.0, -30.0, 15.0]
    ends = []
    for scale in (1.0, 4.0):
        env = make()
        env.reset(seed=0)
        for _ in range(5):
            state, *_ = env.step(scale * np.ones(8))
        ends.append(state)
    assert np.array_equal(*ends)


# --- starts and goals


@given(st.sampled_from(TASK_NAMES), st.integers(0, 2**31 - 1))
def test_evaluations_start_at_the_origin_and_goals_lie_in_their_cell(task, seed):
    env = ENVS[task]
    state, info = env.reset(seed=seed)
    again, same = env.reset(seed=seed)
    assert np.array_equal(state, again)
    assert np.array_equal(info["goal"], same["goal"])
    assert np.abs(state[:2]).max() <= 0.1
    assert abs(state[2] - 0.75) <= 0.1
    assert np.linalg.norm(state[3:7]) == pytest.approx(1.0, abs=1e-12)
    assert state[3] > 0.9
    assert np.abs(state[7:15]).max() <= 0.1
    offset = info["goal"] - centre(GOAL_CELLS[TASKS[task].maze])
    assert (offset >= 0).all()
    assert (offset <= 1.5).all()
    assert not np.array_equal(env.reset()[1]["goal"], info["goal"])


ENVS = {task: make(task) for task in TASK_NAMES}


def test_reset_noise_is_uniform_on_positions_and_normal_on_velocities():
    states = np.array([ENVS["umaze"].reset(seed=seed)[0] for seed in range(1500)])
    positions, velocities = states[:, [0, 1, *range(7, 15)]].ravel(), states[:, 15:].ravel()
    assert positions.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.03)
    assert (positions.min(), positions.max()) == pytest.approx((-0.1, 0.1), abs=1e-3)
    assert velocities.std() == pytest.approx(0.1, rel=0.03)
    assert np.mean(np.abs(velocities) < 0.1) == pytest.approx(0.6827, abs=0.02)


def test_goals_are_spread_as_in_d4rl():
    goals = np.array([draw_goal(np.random.default_rng(seed), ((7, 9),)) for seed in range(4000)]) - centre((7, 9))
    assert goals.mean(0) == pytest.approx([0.75, 0.75], abs=0.02)
    assert goals.var(0) == pytest.approx([(1 + 0.25) / 12] * 2, rel=0.06)
    assert np.abs(np.corrcoef(goals.T)[0, 1]) < 0.05
    assert (draw_goal(np.random.default_rng(0), ((0, 0),)) == 0).all()  # not below the origin


@pytest.mark.parametrize("task", TASK_NAMES)
def test_data_start_and_go_where_the_protocol_says(task):
    maze = MAZES[TASKS[task].maze]
    starts, goals = set(), set()
    for seed in range(300):
        rng = np.random.default_rng(seed)
        goals.add(tuple(maze.cell_of(draw_goal(rng, TASKS[task].goals))))
        if TASKS[task].starts is not None:
            start = draw_start(rng, TASKS[task].starts)
            starts.add(tuple(maze.cell_of(start)))
            assert (start - np.maximum(centre(maze.cell_of(start)), 0) >= 0).all()
            assert (start - centre(maze.cell_of(start)) <= 1).all()
    free = set(maze.free_cells)
    assert goals == {
        "umaze": {(3, 1)},
        "medium-play": {(2, 6), (5, 1), (6, 5)},
        "large-play": {(1, 6), (3, 5), (3, 10), (5, 2), (7, 4), (7, 6), (7, 9)},
    }.get(task, free)
    assert starts == (set() if task == "umaze" else free - goals if task.endswith("play") else free)
    env = make(task, collect=True)
    for seed in range(5):
        state, info = env.reset(seed=seed)
        assert tuple(maze.cell_of(info["goal"])) in goals
        assert tuple(maze.cell_of(state[:2])) in (starts or {(1, 1)})
        assert starts or np.abs(state[:2]).max() <= 0.1


# --- reward and ends


@given(st.tuples(*[st.floats(-5, 5)] * 2), st.tuples(*[st.floats(-5, 5)] * 2))
def test_reached_is_a_disk(xy, goal):
    distance = np.hypot(xy[0] - goal[0], xy[1] - goal[1])
    assert reached(np.array(xy), np.array(goal)) == (distance <= 0.5) or abs(distance - 0.5) < 1e-12
    assert reached(np.array([goal, goal]), np.array(goal)).tolist() == [True, True]


@pytest.mark.parametrize("collect", [False, True])
def test_the_goal_pays_and_ends_an_evaluation_but_no_collection(collect):
    env = make("medium-play", collect=collect)
    _, info = env.reset(seed=2)
    for distance, expected in ((0.3, True), (0.7, False)):
        place(env, info["goal"] + [distance, 0])
        state, reward, terminated, truncated, after = env.step(np.zeros(8))
        gap = np.linalg.norm(state[:2] - info["goal"])
        assert (gap <= 0.5) == expected
        assert reward == float(expected)
        assert terminated == (expected and not collect)
        assert after["success"] == expected
        assert not truncated


def test_a_fall_ends_nothing_and_time_does():
    env = make("umaze")
    env.reset(seed=0)
    core = env.unwrapped
    qpos = core.init_qpos.copy()
    qpos[2:7] = 0.4, 0, 1, 0, 0  # on its back
    core.set_state(qpos, np.zeros(14))
    for step in range(700):
        _, reward, terminated, truncated, _ = env.step(np.zeros(8))
        assert (reward, terminated, truncated) == (0.0, False, step == 699)


# --- names


def test_ids_are_known_to_make_env_without_any_import():
    code = (
        "import gymnasium, sys\nfrom jacrec.envs.physics import make_env\n"
        "assert not any('antmaze' in name for name in gymnasium.registry)\n"
        "env = make_env('jacrec/antmaze-large-diverse-v2')\nassert env.reset(seed=0)[0].shape == (29,)\n"
        "import jacrec.envs.antmaze\ngymnasium.make('jacrec/antmaze-umaze-v2')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_d4rls_own_name_leads_to_ours():
    with pytest.raises(ValueError, match="for D4RL's AntMaze, 'jacrec/antmaze-umaze-v2'"):
        make_env("antmaze-umaze-v2")
    with pytest.raises(ValueError, match="no environment 'jacrec/antmaze-giant-v2'"):
        make_env("jacrec/antmaze-giant-v2")
    with pytest.raises(ValueError, match="task: expected one of 'umaze'"):
        AntMazeEnv("giant")


def test_gymnasium_robotics_is_another_environment():
    if importlib.util.find_spec("gymnasium_robotics") is None:
        pytest.skip("gymnasium-robotics is not installed")
    theirs, ours = make_env("AntMaze_UMaze-v5"), make("umaze")
    assert theirs.unwrapped.ant_env.dt == pytest.approx(0.05)
    assert ours.unwrapped.dt == pytest.approx(0.1)
    assert theirs.observation_space.shape[0] > 29
    assert np.isfinite(theirs.reset(seed=0)[0]).all()
    assert reference_by_env("AntMaze_UMaze-v5") is None


# --- pictures


RENDER = """
import numpy as np
from jacrec.envs.physics import make_env
pictures = []
for camera in ("top", "follow"):
    env = make_env("jacrec/antmaze-medium-play-v2", render_mode="rgb_array", width=64, height=48, camera_name=camera)
    env.reset(seed=0)
    pictures.append(env.render())
    red, green, blue = np.moveaxis(pictures[-1].astype(int), -1, 0)
    assert camera == "follow" or (green > np.maximum(red, blue) + 60).any(), "the goal is not seen"
    env.close()
assert all(p.shape == (48, 64, 3) and p.std() > 10 for p in pictures)
assert (pictures[0] != pictures[1]).mean() > 0.5
"""


def test_both_cameras_see_the_maze():
    rendering = probe()
    if not rendering.ok:
        pytest.skip(rendering.reason)
    assert run_renderer([sys.executable, "-c", RENDER], 120) is None
