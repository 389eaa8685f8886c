"""AntMaze data without downloads: gait, follower, protocol, rewards, data sets; the search behind the gait."""

import dataclasses

import minari
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jacrec.cli import main
from jacrec.data import describe, load, make_dataset
from jacrec.data.behaviour import ant_gait_search, antmaze
from jacrec.data.behaviour.ant_gait import ANKLE_SIGN, Gait, joints, load_gait, yaw
from jacrec.data.behaviour.ant_gait_search import INITIAL_PARAMETERS, FlatGround, evaluate_gait, search, simulate_walk, upright
from jacrec.data.behaviour.antmaze import ACTION_NOISE, RewardCount, WaypointFollower, evaluation_goal, relabel, require_reward
from jacrec.data.behaviour.cmaes import minimise
from jacrec.data.behaviour.collect import Episode
from jacrec.data.behaviour.make import (
    ANTMAZE_KINDS,
    available_kinds,
    behaviour_stages,
    default_id,
    make_episodes,
    resolve_env_id,
)
from jacrec.envs.antmaze import ENV_IDS
from jacrec.envs.antmaze_layout import MAZES, TASKS, centre, reached
from jacrec.training.config import TrainConfig, from_dict, published_name, rebrac_config
from tests import ROOT

SEEDS = st.integers(0, 2**31 - 1)
ACTUATOR_LEG, ACTUATOR_JOINT = np.repeat([3, 0, 1, 2], 2), np.tile([0, 1], 4)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


# --- the gait


def random_states(seed: int, n: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    state = rng.standard_normal((n, 29))
    state[:, 3:7] /= np.linalg.norm(state[:, 3:7], axis=1, keepdims=True)
    return state


def turned(state: np.ndarray, angle: float) -> np.ndarray:
    """The same ants in a world turned about the vertical axis: only position, quaternion and velocity of the torso change."""
    w, x, y, z = state[:, 3:7].T
    c, s = np.cos(angle / 2), np.sin(angle / 2)
    found = state.copy()
    found[:, 3:7] = np.stack((c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w), axis=1)
    return found


def by_leg(action: np.ndarray) -> np.ndarray:
    """(n, 2, 4) actions of hips, and of ankles with equal signs, legs 1 to 4."""
    found = np.empty((len(action), 2, 4))
    found[:, ACTUATOR_JOINT, ACTUATOR_LEG] = action
    found[:, 1] *= ANKLE_SIGN
    return found


def with_joints(state: np.ndarray, angles: np.ndarray, speeds: np.ndarray) -> np.ndarray:
    found = state.copy()
    for values, begin in ((angles, 7), (speeds, 21)):
        values = values.copy()
        values[:, 1] *= ANKLE_SIGN
        found[:, begin : begin + 8] = values.transpose(0, 2, 1).reshape(-1, 8)
    return found


@given(SEEDS, st.floats(-3, 3), st.floats(-3, 3))
def test_walking_any_way_is_the_same_walk(seed, heading, angle):
    state, gait = random_states(seed), load_gait()
    heading = np.full(len(state), heading)
    there = turned(state, angle)
    assert np.exp(1j * yaw(there)) == pytest.approx(np.exp(1j * (yaw(state) + angle)), abs=1e-9)
    assert gait(there, heading + angle) == pytest.approx(gait(state, heading), abs=1e-6)
    assert gait.act_with_clock(there, heading + angle, 0.7) == pytest.approx(gait.act_with_clock(state, heading, 0.7), abs=1e-6)


@given(SEEDS, st.floats(-3, 3))
def test_legs_are_equal_at_quarter_turns(seed, heading):
    """With legs renamed one on, walking a quarter turn further needs the same actions of the renamed legs."""
    state, gait = random_states(seed), load_gait()
    heading = np.full(len(state), heading)
    angles, speeds = joints(state)
    assert np.array_equal(with_joints(state, angles, speeds), state)
    renamed = with_joints(state, np.roll(angles, 1, axis=2), np.roll(speeds, 1, axis=2))
    assert by_leg(gait(renamed, heading + np.pi / 2)) == pytest.approx(np.roll(by_leg(gait(state, heading)), 1, 2), abs=1e-6)


@given(st.lists(st.floats(-2, 2), min_size=20, max_size=20), SEEDS)
def test_a_gait_is_twenty_numbers_and_its_actions_are_bounded(numbers, seed):
    gait = Gait.from_parameters(np.array([1.0, *numbers[1:19], 1.0]))
    assert gait.parameters().tolist() == [1.0, *numbers[1:19], 1.0]
    action = gait(random_states(seed), np.zeros(6))
    assert action.shape == (6, 8)
    assert np.abs(action).max() <= 1.0
    with pytest.raises(ValueError, match="gait: expected 20 numbers, got 19"):
        Gait.from_parameters(np.zeros(19))


def test_the_gait_walks_with_and_without_a_clock():
    plain = FlatGround(16)
    for clock in (True, False):
        found = simulate_walk([load_gait()], plain, np.random.default_rng(0), steps=80, clock=clock, noise=ACTION_NOISE)
        assert found.speed[0] > 0.9
        assert found.drift[0] < 0.15
        assert found.fallen[0] == 0


# --- the follower


@given(st.sampled_from(sorted(MAZES)), SEEDS)
def test_the_follower_heads_along_the_way(name, seed):
    maze, rng = MAZES[name], np.random.default_rng(seed)
    follower = WaypointFollower.of(name)
    here, there = (maze.free_cells[rng.integers(len(maze.free_cells))] for _ in range(2))
    xy, goal = centre(here) + rng.uniform(-1.9, 1.9, 2), centre(there) + rng.uniform(-1.9, 1.9, 2)
    angle = follower.heading(xy[None], goal[None])[0]
    way = np.array([np.cos(angle), np.sin(angle)])
    if here == there:
        assert way == pytest.approx((goal - xy) / np.linalg.norm(goal - xy), abs=1e-6)
        return
    ahead = follower.next_cell[(*here, *there)]
    assert maze.free[tuple(ahead)]
    along = (centre(ahead) - centre(here)) / 4
    assert way @ along > 0.4  # always forward, within about 63 degrees of the line
    aside = (xy - centre(here)) - ((xy - centre(here)) @ along) * along
    assert way @ aside <= 1e-12  # and towards the line between the centres
    assert follower.heading(centre(here)[None], goal[None])[0] == pytest.approx(np.arctan2(along[1], along[0]))


@pytest.mark.parametrize("task", ["umaze", "medium-play", "large-diverse"])
def test_the_follower_arrives(task):
    success, steps, _ = evaluate_gait(load_gait(), task, episodes=6)
    assert success == 1.0
    assert steps < MAZES[TASKS[task].maze].max_episode_steps


# --- rewards


@given(SEEDS, st.integers(1, 40))
def test_relabelling_is_that_of_d4rl(seed, length):
    rng = np.random.default_rng(seed)
    observations = rng.uniform(-1, 1, (length + 1, 31))
    goal = rng.uniform(-1, 1, 2)
    episode = Episode(observations, np.zeros((length, 8), np.float32), np.ones(length), False)
    (found,) = relabel([episode], goal)
    for k in range(length):
        near = np.linalg.norm(observations[k + 1, :2] - goal) <= 0.5
        assert found.rewards[k] == float(near)
        assert found.terminals[k] == near
    assert np.array_equal(found.observations, observations[:, :29])
    assert found.terminated is False
    half = found.first(length - 1)
    assert len(half) == len(half.terminals) == length - 1


def test_data_without_reward_are_refused():
    quiet = Episode(np.zeros((3, 29)), np.zeros((2, 8), np.float32), np.zeros(2), False)
    paid = dataclasses.replace(quiet, rewards=np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"at least 2 episodes .* got 1 of 3; .* make more steps"):
        require_reward("antmaze", [quiet, paid, quiet])
    assert require_reward("antmaze", [quiet, paid, paid]) == RewardCount(2, 2, 3)


def test_the_goal_of_the_rewards_is_drawn_as_an_evaluation_draws_it():
    for task in ANTMAZE_KINDS:
        goals = np.array([evaluation_goal(task, seed) for seed in range(50)])
        offset = goals - centre(MAZES[TASKS[task].maze].evaluation_goal)
        assert (offset >= 0).all()
        assert (offset <= 1.5).all()
        assert len(np.unique(goals[:, 0])) > 40
        assert np.array_equal(evaluation_goal(task, 3), evaluation_goal(task, 3))


# --- data sets


@pytest.mark.parametrize("kind", ANTMAZE_KINDS)
def test_every_kind_can_be_made_and_read(kind, root, monkeypatch):
    monkeypatch.setattr(antmaze, "MIN_REWARDED_EPISODES", 0)  # so few steps seldom come to the evaluation's goal
    made = make_dataset("antmaze", kind, steps=1100, seed=4)
    assert made.dataset_id == default_id("antmaze", kind) == f"jacrec/antmaze-{kind}-v0"
    data = load(made.dataset_id)
    assert (len(data), data.state_dim, data.action_dim, data.info.env_id) == (1100, 29, 8, ENV_IDS[kind])
    assert data.info.physics["margins_halved"] is True
    record = minari.load_dataset(made.dataset_id).storage.metadata["jacrec"]
    assert record["goal"] == evaluation_goal(kind, 4).tolist()
    assert record["rewarded"] == dataclasses.asdict(made.rewarded)
    assert record["policies"][0]["gait"] == load_gait().parameters().tolist()
    near = reached(data.next_state[:, :2].astype(np.float64), np.array(record["goal"]))
    close = np.abs(np.linalg.norm(data.next_state[:, :2] - record["goal"], axis=1) - 0.5) < 1e-5
    assert (close | (near == (data.reward == 1))).all()
    assert np.array_equal(data.terminal, data.reward == 1)
    assert data.terminal.sum() == made.rewarded.steps
    assert (data.info.ref_min, data.info.ref_max) == (0.0, 1.0)


def test_umaze_data_come_to_the_goal_and_go_on(root, capsys):
    assert main(["data", "make", "antmaze", "umaze", "--steps", "1400", "--seed", "1"]) == 0
    data = load("jacrec/antmaze-umaze-v0")
    assert f"reward: {int(data.reward.sum())} steps in 2 of 2 episodes" in capsys.readouterr().out
    ends = np.flatnonzero(~data.has_next_action)
    assert ends.tolist() == [699, 1399]
    first = int(np.argmax(data.terminal))
    assert 100 < first < 400
    assert data.has_next_action[first]  # the episode goes on behind the first reward
    assert np.array_equal(data.state[first + 1], data.next_state[first])
    td = data.for_td()
    assert td.terminal.sum() == data.terminal.sum()
    shown = describe("jacrec/antmaze-umaze-v0")
    assert (shown.lengths.min, shown.lengths.max) == (700, 700)


def test_actions_are_the_followers_with_noise():
    (stage,) = behaviour_stages("antmaze", "medium-play")
    assert stage.noise == ACTION_NOISE == 0.2
    episodes = make_episodes("antmaze", "umaze", steps=300, seed=2)
    state, action = episodes[0].observations[:-1], episodes[0].actions
    goal = centre((3, 1)) + 0.75
    wish = WaypointFollower.of("umaze")(np.concatenate((state, np.tile(goal, (300, 1))), axis=1))
    inside = (np.abs(wish) < 0.3) & (np.arange(300) < 100)[:, None]  # far from the goal, which is not exactly there
    noise = (action - wish)[inside]
    assert len(noise) > 200
    assert noise.std() == pytest.approx(0.2, rel=0.15)
    assert abs(noise.mean()) < 0.05


def test_data_depend_on_the_seed_alone():
    one, same, other = (make_episodes("antmaze", "umaze-diverse", steps=200, seed=seed) for seed in (5, 5, 6))
    for ours, theirs in zip(one, same, strict=True):
        assert np.array_equal(ours.observations, theirs.observations)
        assert np.array_equal(ours.actions, theirs.actions)
        assert np.array_equal(ours.rewards, theirs.rewards)
    assert not np.array_equal(one[0].observations[0], other[0].observations[0])


def test_names_and_kinds():
    assert available_kinds("antmaze") == ANTMAZE_KINDS == tuple(TASKS)
    assert resolve_env_id("antmaze", "large-play") == "jacrec/antmaze-large-play-v2"
    with pytest.raises(ValueError, match=r"kind of antmaze: expected one of 'umaze', .* got 'medium'"):
        make_dataset("antmaze", "medium", steps=10)
    with pytest.raises(ValueError, match="kind of hopper: expected one of 'random'"):
        make_dataset("hopper", "umaze", steps=10)


def test_training_takes_the_published_settings_of_the_task():
    assert published_name("jacrec/antmaze-large-diverse-v0") == "antmaze-large-diverse-v2"
    settings = TrainConfig.for_dataset("jacrec/antmaze-umaze-v0").rebrac
    assert settings == rebrac_config("antmaze-umaze-v2")
    assert (settings.discount, settings.reward_scale) == (0.999, 100.0)
    assert published_name("jacrec/hopper-medium-v0") is None


# --- the search


@pytest.mark.parametrize(("d", "condition"), [(3, 1.0), (10, 1e3)])
def test_cmaes_finds_the_minimum(d, condition):
    scale = condition ** (np.arange(d) / (d - 1) / 2)
    goal = np.linspace(-1, 2, d)
    seen = []
    found = minimise(
        lambda x: np.square(scale * (x - goal)).sum(1),
        np.zeros(d),
        np.ones(d),
        generations=50 * d,
        rng=np.random.default_rng(0),
        report=lambda generation, costs, mean: seen.append(costs.min()),
    )
    assert found == pytest.approx(goal, abs=1e-3)
    assert len(seen) == 50 * d
    assert seen[-1] < 1e-6 < seen[0]


def test_cmaes_searches_in_units_of_the_spread_and_repeats_itself():
    spread = np.array([1e-3, 1e3])

    def run(scale):
        rng = np.random.default_rng(7)
        return minimise(lambda x: np.square(x / scale - 1).sum(1), np.zeros(2), scale, generations=20, rng=rng)

    assert run(spread) / spread == pytest.approx(run(np.ones(2)), rel=1e-9)


def test_the_search_gets_better(capsys):
    plain = FlatGround(16)

    def cost(gait):
        return simulate_walk([gait], plain, np.random.default_rng(3), steps=60, clock=False, noise=ACTION_NOISE).cost[0]

    found = search(seed=0, generations=4, population=8, ants=2, steps=40)
    assert cost(found) < cost(Gait.from_parameters(INITIAL_PARAMETERS))
    assert np.array_equal(found.parameters(), np.round(found.parameters(), 4))
    assert np.array_equal(
        search(seed=0, generations=1, population=4, ants=1, steps=5, quiet=True).parameters(),
        search(seed=0, generations=1, population=4, ants=1, steps=5, quiet=True).parameters(),
    )


def test_all_gaits_of_a_generation_meet_the_same_ants_and_noise():
    gait = load_gait()
    found = simulate_walk([gait, gait, gait], FlatGround(9), np.random.default_rng(0), steps=20, clock=True, noise=0.3)
    assert len(set(found.cost.tolist())) == 1
    assert upright(np.eye(29)[3:6]).tolist() == [1.0, -1.0, -1.0]  # quaternions 1, i, j


def test_the_command_line_measures_what_it_found(monkeypatch, capsys):
    monkeypatch.setattr(ant_gait_search, "search", lambda **options: load_gait())
    monkeypatch.setattr(ant_gait_search, "FlatGround", lambda n, threads: FlatGround(4, threads))
    monkeypatch.setattr(ant_gait_search, "evaluate_gait", lambda gait, task, **options: (1.0, 100.0, 0.0))
    ant_gait_search.main(["--seed", "3"])
    out = capsys.readouterr().out
    assert "m/s" in out
    assert str(load_gait().parameters().tolist()) in out


def test_the_small_runs_settings_are_known():
    folder = ROOT / "paper_checks/settings"
    settings = from_dict(yaml.safe_load((folder / "antmaze-umaze-small.yaml").read_text(encoding="utf-8")))
    assert settings.rebrac.updates == 30_000
    assert settings.rebrac.actor_bc_coef > rebrac_config("antmaze-umaze-v2").actor_bc_coef
