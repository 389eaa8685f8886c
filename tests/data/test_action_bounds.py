"""Data of environments whose actions are not bounded by -1 and 1: made, stored in their units, read in [-1, 1]."""

import json

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from minari.dataset.minari_storage import MinariStorage
from minari.serialization import serialize_space

from jacrec.data import describe, load, make_dataset
from jacrec.data.readers.minari import dataset_path
from jacrec.envs.physics import make_env

NAME = "jacrec/Pendulum-v1-random-v0"


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def with_actions(space, **options):
    """Pendulum with the actions of another space, taken as they are."""
    return gymnasium.wrappers.TransformAction(PendulumEnv(**options), lambda a: np.clip(a, -2, 2), space)


def unbounded(**options):
    return with_actions(gymnasium.spaces.Box(-np.inf, np.inf, (1,)), **options)


def halved(**options):
    return with_actions(gymnasium.spaces.Box(-1.0, 1.0, (1,)), **options)


@pytest.fixture
def registered():
    here = "tests.data.test_action_bounds"
    gymnasium.register("Unbounded-v0", f"{here}:unbounded", max_episode_steps=50)
    gymnasium.register("Wrapped-v0", f"{here}:halved", max_episode_steps=50)
    gymnasium.register("Endless-v0", f"{here}:PendulumEnv")
    yield
    for env_id in ("Unbounded-v0", "Wrapped-v0", "Endless-v0"):
        del gymnasium.registry[env_id]


def test_actions_are_stored_in_the_environments_units_and_read_in_one():
    made = make_dataset("Pendulum-v1", "random", steps=400, seed=1)
    assert made.dataset_id == NAME
    stored = list(MinariStorage.read(dataset_path(NAME) / "data").get_episodes(range(2)))
    actions = np.concatenate([episode["actions"] for episode in stored])
    assert np.abs(actions).max() > 1.9
    data = load(NAME)
    assert data.action == pytest.approx(actions / 2, abs=1e-7)
    assert (data.info.action_low, data.info.action_high) == ((-2.0,), (2.0,))
    assert str(describe(NAME).info.action_box) == "[-2, 2]"
    env = make_env("Pendulum-v1")
    env.reset(seed=int(np.random.default_rng([1, 0, 0]).integers(2**31)))
    replayed = [env.step(action.astype(np.float64))[0] for action in stored[0]["actions"]]
    assert np.array_equal(stored[0]["observations"][1:], np.array(replayed, stored[0]["observations"].dtype))


def test_stated_bounds_override_the_stored_ones():
    make_dataset("Pendulum-v1", "random", steps=200)
    data = load(NAME, action_low=-4.0, action_high=4.0)
    assert data.info.action_high == (4.0,)
    assert np.abs(data.action).max() < 0.51
    with pytest.raises(ValueError, match=r"actions: expected \[-1, 1\], got .*state the right bounds"):
        load(NAME, action_low=-1.0, action_high=1.0)


def test_bounds_of_one_are_recorded_and_change_no_bit():
    make_dataset("hopper", "random", steps=300)
    data = load("jacrec/hopper-random-v0")
    stored = MinariStorage.read(dataset_path("jacrec/hopper-random-v0") / "data").get_episodes(range(data.episode.max() + 1))
    assert np.array_equal(data.action, np.concatenate([episode["actions"] for episode in stored]))
    assert data.info.action_low == (-1.0, -1.0, -1.0)


def test_the_space_of_a_wrapper_is_stored(registered):
    made = make_dataset("Wrapped-v0", "random", steps=100)
    data = load(made.dataset_id)
    assert data.info.action_high == (1.0,)
    assert np.abs(data.action).max() > 0.9


def test_environments_without_bounds_or_time_limit_are_refused(registered):
    with pytest.raises(ValueError, match=r"Unbounded-v0: .*finite bounds.*got Box\(-inf, inf"):
        make_dataset("Unbounded-v0", "random", steps=100)
    with pytest.raises(ValueError, match=r"Endless-v0: .*time limit.*--max-episode-steps"):
        make_dataset("Endless-v0", "random", steps=100)
    assert make_dataset("Endless-v0", "random", steps=100, max_episode_steps=20).episodes == 5


def test_a_set_without_bounds_has_to_be_told_them():
    make_dataset("Pendulum-v1", "random", steps=200)
    file, space = dataset_path(NAME) / "data" / "metadata.json", gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"action_space": serialize_space(space)}))
    with pytest.raises(ValueError, match=rf"{NAME}: expected actions with finite bounds.*--action-low"):
        load(NAME)
    assert np.abs(load(NAME, action_low=-2.0, action_high=2.0).action).max() > 0.9


def test_files_in_d4rls_layout_can_state_bounds(tmp_path):
    rng = np.random.default_rng(0)
    ends = np.arange(40) % 10 == 9
    arrays = {"observations": rng.normal(size=(40, 3)), "actions": rng.uniform(-2, 2, (40, 1)), "rewards": rng.normal(size=40)}
    np.savez(tmp_path / "mine.npz", **arrays, terminals=np.zeros(40, bool), timeouts=ends)
    with pytest.raises(ValueError, match=r"mine: actions: expected \[-1, 1\].*action_low"):
        load(tmp_path / "mine.npz")
    data = load(tmp_path / "mine.npz", action_low=-2.0, action_high=(2.0,))
    assert data.action == pytest.approx(arrays["actions"][~ends] / 2, abs=1e-7)
