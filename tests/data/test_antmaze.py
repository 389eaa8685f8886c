"""AntMaze data without downloads: follower, rewards, data sets, settings."""

import dataclasses

import minari
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jacrec.cli import main
from jacrec.data import describe, load, make_dataset
from jacrec.data.behaviour import antmaze
from jacrec.data.behaviour.ant_gait import load_gait
from jacrec.data.behaviour.ant_gait_search import evaluate_gait
from jacrec.data.behaviour.antmaze import ACTION_NOISE, RewardCount, WaypointFollower, evaluation_goal, relabel, require_reward
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


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


@given(st.sampled_from(sorted(MAZES)), SEEDS)
def test_the_follower_heads_along_the_path(name, seed):
    maze, rng = MAZES[name], np.random.default_rng(seed)
    follower = WaypointFollower.of(name)
    here, there = (maze.free_cells[rng.integers(len(maze.free_cells))] for _ in range(2))
    xy, goal = centre(here) + rng.uniform(-1.9, 1.9, 2), centre(there) + rng.uniform(-1.9, 1.9, 2)
    angle = follower.heading(xy[None], goal[None])[0]
    direction = np.array([np.cos(angle), np.sin(angle)])
    if here == there:
        assert direction == pytest.approx((goal - xy) / np.linalg.norm(goal - xy), abs=1e-6)
        return
    ahead = follower.next_cell[(*here, *there)]
    assert maze.free[tuple(ahead)]
    along = (centre(ahead) - centre(here)) / 4
    assert direction @ along > 0.4  # always forward, within about 63 degrees of the line
    aside = (xy - centre(here)) - ((xy - centre(here)) @ along) * along
    assert direction @ aside <= 1e-12  # and towards the line between the centres
    assert follower.heading(centre(here)[None], goal[None])[0] == pytest.approx(np.arctan2(along[1], along[0]))


@pytest.mark.parametrize("task", ["umaze", "medium-play", "large-diverse"])
def test_the_follower_reaches_the_goal(task):
    success, steps, _ = evaluate_gait(load_gait(), task, episodes=6)
    assert success == 1.0
    assert steps < MAZES[TASKS[task].maze].max_episode_steps


@given(SEEDS, st.integers(1, 40))
def test_relabelling_equals_d4rls(seed, length):
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


def test_data_without_reward_are_rejected():
    quiet = Episode(np.zeros((3, 29)), np.zeros((2, 8), np.float32), np.zeros(2), False)
    paid = dataclasses.replace(quiet, rewards=np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"^antmaze: .*at least 2 .*got 1 of 3; .*more steps"):
        require_reward("antmaze", [quiet, paid, quiet])
    assert require_reward("antmaze", [quiet, paid, paid]) == RewardCount(2, 2, 3)


def test_the_reward_goal_is_drawn_as_in_an_evaluation():
    for task in ANTMAZE_KINDS:
        goals = np.array([evaluation_goal(task, seed) for seed in range(50)])
        offset = goals - centre(MAZES[TASKS[task].maze].evaluation_goal)
        assert (offset >= 0).all()
        assert (offset <= 1.5).all()
        assert len(np.unique(goals[:, 0])) > 40
        assert np.array_equal(evaluation_goal(task, 3), evaluation_goal(task, 3))


@pytest.mark.parametrize("kind", ANTMAZE_KINDS)
def test_every_kind_can_be_generated_and_read(kind, root, monkeypatch):
    monkeypatch.setattr(antmaze, "MIN_REWARDED_EPISODES", 0)  # so few steps seldom reach the evaluation goal
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


def test_umaze_episodes_continue_past_the_goal(root, capsys):
    assert main(["data", "make", "antmaze", "umaze", "--steps", "1400", "--seed", "1"]) == 0
    data = load("jacrec/antmaze-umaze-v0")
    assert f"reward: {int(data.reward.sum())} steps in 2 of 2 episodes" in capsys.readouterr().out
    ends = np.flatnonzero(~data.has_next_action)
    assert ends.tolist() == [699, 1399]
    first = int(np.argmax(data.terminal))
    assert 100 < first < 400
    assert data.has_next_action[first]  # the episode continues after the first reward
    assert np.array_equal(data.state[first + 1], data.next_state[first])
    td = data.for_td()
    assert td.terminal.sum() == data.terminal.sum()
    shown = describe("jacrec/antmaze-umaze-v0")
    assert (shown.lengths.min, shown.lengths.max) == (700, 700)


def test_actions_are_those_of_the_follower_with_noise():
    (stage,) = behaviour_stages("antmaze", "medium-play")
    assert stage.noise == ACTION_NOISE == 0.2
    episodes = make_episodes("antmaze", "umaze", steps=300, seed=2)
    state, action = episodes[0].observations[:-1], episodes[0].actions
    goal = centre((3, 1)) + 0.75
    wish = WaypointFollower.of("umaze")(np.concatenate((state, np.tile(goal, (300, 1))), axis=1))
    inside = (np.abs(wish) < 0.3) & (np.arange(300) < 100)[:, None]  # far from the goal, whose position is only approximate
    noise = (action - wish)[inside]
    assert len(noise) > 200
    assert noise.std() == pytest.approx(0.2, rel=0.15)
    assert abs(noise.mean()) < 0.05


def test_data_depend_only_on_the_seed():
    one, same, other = (make_episodes("antmaze", "umaze-diverse", steps=200, seed=seed) for seed in (5, 5, 6))
    for actual, expected in zip(one, same, strict=True):
        assert np.array_equal(actual.observations, expected.observations)
        assert np.array_equal(actual.actions, expected.actions)
        assert np.array_equal(actual.rewards, expected.rewards)
    assert not np.array_equal(one[0].observations[0], other[0].observations[0])


def test_names_and_kinds():
    assert available_kinds("antmaze") == ANTMAZE_KINDS == tuple(TASKS)
    assert resolve_env_id("antmaze", "large-play") == "jacrec/antmaze-large-play-v2"
    with pytest.raises(ValueError, match=r"^kind of antmaze: .*'umaze', .*got 'medium'"):
        make_dataset("antmaze", "medium", steps=10)
    with pytest.raises(ValueError, match=r"^kind of hopper: .*'random', .*got 'umaze'"):
        make_dataset("hopper", "umaze", steps=10)


def test_training_uses_the_published_settings():
    assert published_name("jacrec/antmaze-large-diverse-v0") == "antmaze-large-diverse-v2"
    settings = TrainConfig.for_dataset("jacrec/antmaze-umaze-v0").rebrac
    assert settings == rebrac_config("antmaze-umaze-v2")
    assert (settings.discount, settings.reward_scale) == (0.999, 100.0)
    assert published_name("jacrec/hopper-medium-v0") is None


def test_settings_of_the_small_run_are_valid():
    folder = ROOT / "paper_checks/settings"
    settings = from_dict(yaml.safe_load((folder / "antmaze-umaze-small.yaml").read_text(encoding="utf-8")))
    assert settings.rebrac.updates == 30_000
    assert settings.rebrac.actor_bc_coef > rebrac_config("antmaze-umaze-v2").actor_bc_coef
