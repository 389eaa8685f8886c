"""D4RL's AntMaze environments: spaces, starts, goals, rewards, terminations, ids and rendering."""

import importlib.util
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from jacrec.data.behaviour.ant_gait import load_gait
from jacrec.data.references import reference_by_env
from jacrec.envs.antmaze import COLLECTION_IDS, ENV_IDS, AntMazeEnv, torque
from jacrec.envs.antmaze_layout import MAZES, TASKS, centre, draw_goal, draw_start
from jacrec.envs.physics import make_env
from jacrec.evaluation.rendering import probe, run_renderer

TASK_NAMES = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
GOAL_CELLS = {"umaze": (3, 1), "medium": (6, 6), "large": (7, 9)}


def make(task="umaze", *, collect=False, **kwargs):
    return make_env((COLLECTION_IDS if collect else ENV_IDS)[task], **kwargs)


def place(env, xy, angle=0.0):
    """Place the ant at rest."""
    core = env.unwrapped
    qpos = core.init_qpos.copy()
    qpos[:2] = xy
    qpos[3:7] = np.cos(angle / 2), 0, 0, np.sin(angle / 2)
    qpos[8::2] = 0.8, -0.8, -0.8, 0.8  # within the ankles' limits, unlike after a reset
    core.set_state(qpos, np.zeros(14))


@pytest.mark.parametrize("heading", [0.0, np.pi / 2, np.pi, 3 * np.pi / 2])
def test_walls_are_solid(heading):
    env, gait = make(), load_gait()
    env.reset(seed=3)
    state = None
    place(env, centre((1, 2)) if heading in (np.pi / 2, 3 * np.pi / 2) else centre((2, 3)))
    state = env.unwrapped.state_vector()
    walls = set()
    for _ in range(60):
        state, *_ = env.step(gait(state[None], np.array([heading]))[0])
        data = env.unwrapped.data
        for k in range(data.ncon):
            walls |= {env.unwrapped.model.geom(int(g)).name for g in data.contact[k].geom}
    assert any(name.startswith("wall") for name in walls)
    cell = env.unwrapped.geometry.cell_of(state[:2])
    assert env.unwrapped.geometry.free[tuple(cell)]
    assert np.abs(state[:2] - centre(cell)).max() < 2.0


@pytest.mark.parametrize("task", TASK_NAMES)
def test_spaces_and_limits(task):
    for collect in (False, True):
        env = make(task, collect=collect)
        assert env.observation_space == gymnasium.spaces.Box(-np.inf, np.inf, (31 if collect else 29,), np.float64)
        assert env.action_space == gymnasium.spaces.Box(-1, 1, (8,), np.float32)
        assert env.spec.max_episode_steps == (700 if task.startswith("umaze") else 1000)
        assert env.unwrapped.dt == pytest.approx(0.1)
        assert isinstance(env.unwrapped, AntMazeEnv)
    assert set(TASKS) == set(ENV_IDS) == set(TASK_NAMES)


@pytest.mark.filterwarnings("ignore:.*A Box observation space m:UserWarning")
def test_gymnasiums_checker_passes():
    check_env(AntMazeEnv("medium-play"), skip_render_check=True)


def test_state_layout():
    for collect in (False, True):
        env = make(collect=collect)
        state, info = env.reset(seed=1)
        for _ in range(3):
            data = env.unwrapped.data
            assert np.array_equal(state[:29], np.concatenate((data.qpos[:15], data.qvel[:14])))
            assert not collect or np.array_equal(state[29:], info["goal"])
            state, *_ = env.step(np.full(8, 0.3))


def test_actuator_order():
    env = make()
    env.reset(seed=0)
    core = env.unwrapped
    names = [f"{joint}_{leg}" for leg in (4, 1, 2, 3) for joint in ("hip", "ankle")]
    for k, name in enumerate(names):
        place(env, (0, 0))
        core.data.qpos[2] = 5.0  # in the air, without contact forces
        env.step(np.eye(8)[k])
        speed = core.data.qvel[6:]
        dof = core.model.joint(name).dofadr[0] - 6
        assert core.data.ctrl[k] == 30.0
        assert speed[dof] > 0.5
        assert np.abs(np.delete(speed, dof)).max() < 0.5 * speed[dof]


def test_actions_are_clipped():
    assert torque(np.array([2.0, -7.0, 0.5])).tolist() == [30.0, -30.0, 15.0]
    ends = []
    for scale in (1.0, 4.0):
        env = make()
        env.reset(seed=0)
        for _ in range(5):
            state, *_ = env.step(scale * np.ones(8))
        ends.append(state)
    assert np.array_equal(*ends)


@given(st.sampled_from(TASK_NAMES), st.integers(0, 2**31 - 1))
def test_evaluation_starts_and_goals(task, seed):
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


def test_reset_noise():
    states = np.array([ENVS["umaze"].reset(seed=seed)[0] for seed in range(1500)])
    positions, velocities = states[:, [0, 1, *range(7, 15)]].ravel(), states[:, 15:].ravel()
    assert positions.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.03)
    assert (positions.min(), positions.max()) == pytest.approx((-0.1, 0.1), abs=1e-3)
    assert velocities.std() == pytest.approx(0.1, rel=0.03)
    assert np.mean(np.abs(velocities) < 0.1) == pytest.approx(0.6827, abs=0.02)


@pytest.mark.parametrize("task", TASK_NAMES)
def test_collection_starts_and_goals(task):
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


@pytest.mark.parametrize("collect", [False, True])
def test_reaching_the_goal_ends_evaluations_only(collect):
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


def test_only_the_time_limit_ends_an_episode_after_a_fall():
    env = make("umaze")
    env.reset(seed=0)
    core = env.unwrapped
    qpos = core.init_qpos.copy()
    qpos[2:7] = 0.4, 0, 1, 0, 0  # on its back
    core.set_state(qpos, np.zeros(14))
    for step in range(700):
        _, reward, terminated, truncated, _ = env.step(np.zeros(8))
        assert (reward, terminated, truncated) == (0.0, False, step == 699)


def test_make_env_registers_the_ids():
    code = (
        "import gymnasium, sys\nfrom jacrec.envs.physics import make_env\n"
        "assert not any('antmaze' in name for name in gymnasium.registry)\n"
        "env = make_env('jacrec/antmaze-large-diverse-v2')\nassert env.reset(seed=0)[0].shape == (29,)\n"
        "import jacrec.envs.antmaze\ngymnasium.make('jacrec/antmaze-umaze-v2')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_unknown_ids_are_rejected():
    with pytest.raises(ValueError, match=r"^env_id: .*'jacrec/antmaze-umaze-v2', got 'antmaze-umaze-v2'"):
        make_env("antmaze-umaze-v2")
    with pytest.raises(ValueError, match=r"^env_id: .*got 'jacrec/antmaze-giant-v2'"):
        make_env("jacrec/antmaze-giant-v2")
    with pytest.raises(ValueError, match=r"^task: .*'umaze', .*got 'giant'"):
        AntMazeEnv("giant")


def test_gymnasium_robotics_antmaze_is_different():
    if importlib.util.find_spec("gymnasium_robotics") is None:
        pytest.skip("gymnasium-robotics is not installed")
    theirs, ours = make_env("AntMaze_UMaze-v5"), make("umaze")
    assert theirs.unwrapped.ant_env.dt == pytest.approx(0.05)
    assert ours.unwrapped.dt == pytest.approx(0.1)
    assert theirs.observation_space.shape[0] > 29
    assert np.isfinite(theirs.reset(seed=0)[0]).all()
    assert reference_by_env("AntMaze_UMaze-v5") is None


RENDER = """
import numpy as np
from jacrec.envs.physics import make_env
pictures = []
for camera in ("top", "follow"):
    env = make_env("jacrec/antmaze-medium-play-v2", render_mode="rgb_array", width=64, height=48, camera_name=camera)
    env.reset(seed=0)
    pictures.append(env.render())
    red, green, blue = np.moveaxis(pictures[-1].astype(int), -1, 0)
    assert camera == "follow" or (green > np.maximum(red, blue) + 60).any(), "the goal is not visible"
    env.close()
assert all(p.shape == (48, 64, 3) and p.std() > 10 for p in pictures)
assert (pictures[0] != pictures[1]).mean() > 0.5
"""


def test_both_cameras_see_the_maze():
    rendering = probe()
    if not rendering.ok:
        pytest.skip(rendering.reason)
    assert run_renderer([sys.executable, "-c", RENDER], 120) is None
