"""Action bounds: the affine map, what a policy's [-1, 1] stands for, and environments that end their own episodes."""

import gymnasium
import numpy as np
import pytest

from jacrec.envs.actions import ActionBox, expect_time_limit, played_box
from jacrec.envs.batch import BatchedEnv
from jacrec.envs.physics import make_env

TORQUE = gymnasium.spaces.Box(-2.0, 2.0, (1,))
HUMANOID = gymnasium.spaces.Box(-0.4, 0.4, (17,))


def test_bounds_of_one_change_nothing():
    action = np.random.default_rng(0).uniform(-3, 3, (5, 2)).astype(np.float32)
    for box in (ActionBox(), ActionBox((-1.0, -1.0), (1.0, 1.0))):
        assert box.is_unit
        assert box.to_unit(action) is action
        assert box.from_unit(action) is action


def test_other_bounds_are_an_affine_map_and_its_inverse():
    box = ActionBox.stated([-2.0, 0.0], [2.0, 10.0])
    assert box is not None
    assert box.from_unit(np.array([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]])).tolist() == [[-2, 0], [0, 5], [2, 10]]
    unit = np.random.default_rng(0).uniform(-1, 1, (1000, 2))
    assert box.to_unit(box.from_unit(unit)) == pytest.approx(unit, abs=1e-15)
    assert box.from_unit(np.array([5.0, -5.0])).tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (-1.0, None, "action_low, action_high: expected both or neither, got -1.0 and None"),
        ([-1, -1], [1, 1, 1], "action_low, action_high: "),
        (1.0, 1.0, r"action bounds: .*got \[1, 1\]"),
        (-np.inf, np.inf, r"action bounds: .*finite.*got \[-inf, inf\]"),
        (np.nan, 1.0, "action bounds: .*finite.*got"),
    ],
)
def test_what_is_no_bound_is_refused(low, high, message):
    with pytest.raises(ValueError, match=message):
        ActionBox.stated(low, high)


def test_printed_bounds_can_be_given_again():
    """With bounds that are a float32's, as those of a data set's actions, six digits would name others."""
    for low, high in ((-1.9999517, 1.9991463), (-2.0, 2.0), (-1e30, 0.1), (np.float32(-1 / 3), np.float32(1e-5))):
        box = ActionBox((float(low), -1.0), (float(high), 1.0))
        words = box.arguments().split()
        again = ActionBox.stated([float(x) for x in words[1:3]], [float(x) for x in words[4:6]])
        assert again is not None
        assert again.same_as(box)
        assert [words[0], words[3]] == ["--action-low", "--action-high"]
        assert f"[{words[1]}, {words[4]}] x [-1, 1]" == str(box)


def test_by_default_the_environments_bounds_count():
    assert played_box(TORQUE, "Pendulum-v1") == ActionBox((-2.0,), (2.0,))
    assert played_box(HUMANOID, "Humanoid-v5", ActionBox.stated(-0.4, 0.4)).high[0] == np.float32(0.4)


def test_data_with_other_bounds_need_a_choice():
    data = ActionBox()
    with pytest.raises(ValueError, match=r"Pendulum-v1: expected action bounds \[-1, 1\].*got \[-2, 2\].*data or env"):
        played_box(TORQUE, "Pendulum-v1", data)
    assert played_box(TORQUE, "Pendulum-v1", data, "data") == data
    assert played_box(TORQUE, "Pendulum-v1", data, "env").high == (2.0,)
    assert played_box(TORQUE, "Pendulum-v1", None, "data") == data
    with pytest.raises(ValueError, match=r"action_bounds: .*'env', 'data'.*got 'both'"):
        played_box(TORQUE, "Pendulum-v1", data, "both")


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Box(-np.inf, np.inf, (2,)),
        gymnasium.spaces.Box(np.float32([-1, -1]), np.float32([1, np.inf])),
        gymnasium.spaces.Box(np.finfo(np.float32).min, np.finfo(np.float32).max, (2,)),
        gymnasium.spaces.Discrete(2),
    ],
)
def test_bounds_that_are_infinite_or_missing_are_refused(space):
    with pytest.raises(ValueError, match=r"Mine-v0: expected actions with finite bounds.*action_bounds"):
        played_box(space, "Mine-v0")
    assert played_box(space, "Mine-v0", ActionBox((-3.0,), (3.0,)), "data").high == (3.0,)


@pytest.mark.parametrize(
    ("env_id", "engine"), [("Hopper-v4", "mujoco.batch"), ("Hopper-v4", "gymnasium"), ("Pendulum-v1", "auto")]
)
def test_batched_rows_are_scaled_in_both_engines(env_id, engine):
    batch, env = BatchedEnv(env_id, 2, engine=engine), make_env(env_id)
    batch.action_box = ActionBox((-0.25,), (0.75,))
    batch.reset([0, 1])
    env.reset(seed=1)
    for unit in np.random.default_rng(0).uniform(-1, 1, (20, 2, batch.action_dim)):
        observation, reward, *_ = batch.step(unit)
        expected, pay, *_ = env.step(0.25 + 0.5 * unit[1])
        assert observation[1] == pytest.approx(expected, abs=1e-6)
        assert reward[1] == pytest.approx(pay, abs=1e-6)


class Impatient(gymnasium.Env):
    """Observes the number of steps, and truncates itself at step 10."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.full(1, self.steps, np.float32), 1.0, False, self.steps == 10, {}


@pytest.fixture
def impatient():
    gymnasium.register("Impatient-v0", Impatient, max_episode_steps=100)
    gymnasium.register("Endless-v0", Impatient)
    yield
    del gymnasium.registry["Impatient-v0"], gymnasium.registry["Endless-v0"]


def test_an_environments_own_truncation_counts(impatient):
    batch = BatchedEnv("Impatient-v0", 2)
    batch.reset([0, 1])
    lengths = [batch.elapsed.copy() for _ in range(20) if batch.step(np.zeros((2, 1))) is not None]
    assert lengths[-1].tolist() == [10, 10]
    assert batch.done.all()


def test_a_time_limit_can_be_set(impatient):
    assert BatchedEnv("Endless-v0", 1).max_episode_steps is None
    for env_id, engine in (("Endless-v0", "gymnasium"), ("Hopper-v4", "mujoco.batch"), ("Hopper-v4", "gymnasium")):
        batch = BatchedEnv(env_id, 1, engine=engine, max_episode_steps=4)
        batch.reset([0])
        flags = [bool(batch.step(np.zeros((1, batch.action_dim)))[3][0]) for _ in range(4)]
        assert (batch.max_episode_steps, flags) == (4, [False, False, False, True])


def test_an_environment_without_a_time_limit_is_named():
    with pytest.raises(ValueError, match=r"Endless-v0: .*time limit.*--max-episode-steps"):
        expect_time_limit("Endless-v0", None)
