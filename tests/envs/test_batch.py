"""Parallel episodes against gymnasium's own stepping, bit for bit."""

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import WrapperSpec

from jacrec.data.behaviour.antmaze import WaypointFollower
from jacrec.envs.batch import BatchedEnv
from jacrec.envs.physics import make_env

THREADED = ["Hopper-v4", "HalfCheetah-v4", "Walker2d-v4", "Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "Ant-v4"]
ANT_MAZES = ["jacrec/antmaze-umaze-v2", "jacrec/antmaze-large-diverse-v2", "jacrec/antmaze-medium-play-collect-v2"]


def actions_of(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1.3, 1.3, shape)


@pytest.mark.parametrize("physics", ["d4rl", "native"])
@pytest.mark.parametrize("env_id", [*THREADED, *ANT_MAZES])
def test_threaded_rows_are_bit_identical_to_gymnasium(env_id, physics):
    n, steps, seeds = 5, 120, [3, 0, 3, 12345, 7]
    batch = BatchedEnv(env_id, n, physics=physics, threads=2)
    assert batch.engine == "mujoco.batch"
    observation = batch.reset(seeds)
    actions = actions_of(1, (steps, n, batch.action_dim))
    envs = [make_env(env_id, physics=physics) for _ in seeds]
    expected = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
    running = np.ones(n, bool)
    assert np.array_equal(observation, expected)
    for action in actions:
        observation, reward, terminated, truncated = batch.step(action)
        for i in np.flatnonzero(running):
            expected[i], pay, end, cut, _ = envs[i].step(action[i])
            assert np.array_equal(observation[i], expected[i])
            assert reward[i] == pay
            assert (terminated[i], truncated[i]) == (end, cut)
            running[i] = not (end or cut)
        assert np.array_equal(observation, expected)
        assert np.array_equal(batch.done, ~running)
    never_ends = env_id.startswith(("HalfCheetah", "jacrec/antmaze"))
    assert running.any() == never_ends or env_id == "Ant-v4"


def test_antmaze_rows_equal_gymnasium_up_to_their_goals():
    seeds, follower = [0, 1, 2], WaypointFollower.of("umaze")
    batch = BatchedEnv("jacrec/antmaze-umaze-v2", len(seeds), threads=2)
    envs = [make_env("jacrec/antmaze-umaze-v2") for _ in seeds]
    goals = np.array([env.reset(seed=seed)[1]["goal"] for env, seed in zip(envs, seeds, strict=True)])
    observation = batch.reset(seeds)
    contacts = 0
    while not batch.done.all():
        running = ~batch.done
        action = follower(np.concatenate((observation, goals), axis=1))
        observation, reward, terminated, truncated = batch.step(action)
        for i in np.flatnonzero(running):
            expected, pay, end, cut, _ = envs[i].step(action[i])
            assert np.array_equal(observation[i], expected)
            assert (reward[i], terminated[i], truncated[i]) == (pay, end, cut)
            contacts += envs[i].unwrapped.data.ncon
    assert terminated.all()
    assert len(set(batch.elapsed.tolist())) == 3
    assert contacts > 200
    assert (np.linalg.norm(observation[:, :2] - goals, axis=1) <= 0.5).all()


def test_rows_can_be_reset_independently():
    batch, env = BatchedEnv("Hopper-v4", 3), make_env("Hopper-v4")
    batch.reset([1, 2, 3])
    actions = actions_of(0, (60, 3))
    for action in actions[:20]:
        batch.step(np.tile(action, (3, 1)))
    observation = batch.reset([9], rows=[1])
    expected, _ = env.reset(seed=9)
    assert np.array_equal(observation[1], expected)
    assert batch.elapsed.tolist()[1] == 0
    for action in actions[20:30]:
        observation, reward, *_ = batch.step(np.tile(action, (3, 1)))
        expected, pay, *_ = env.step(action)
        assert np.array_equal(observation[1], expected)
        assert reward[1] == pay


def test_engines_agree():
    threaded, looped = BatchedEnv("Hopper-v4", 4), BatchedEnv("Hopper-v4", 4, engine="gymnasium")
    assert (threaded.engine, looped.engine) == ("mujoco.batch", "gymnasium")
    assert np.array_equal(threaded.reset([0, 1, 2, 3]), looped.reset([0, 1, 2, 3]))
    for action in actions_of(5, (150, 4, 3)):
        for actual, expected in zip(threaded.step(action), looped.step(action), strict=True):
            assert np.array_equal(actual, expected)
    assert threaded.done.all()


def test_finished_rows_are_frozen_with_zero_reward():
    batch = BatchedEnv("Hopper-v4", 2)
    batch.reset([0, 1])
    for action in actions_of(2, (400, 2, 3)):
        observation, _, terminated, _ = batch.step(action)
        if terminated[0]:
            break
    assert terminated[0]
    later, reward, still, _ = batch.step(np.full((2, 3), np.nan) if batch.done.all() else np.ones((2, 3)))
    assert np.array_equal(later[0], observation[0])
    assert reward[0] == 0.0
    assert still[0]


def test_time_limit_truncates():
    batch = BatchedEnv("HalfCheetah-v4", 2)
    assert (batch.max_episode_steps, batch.step_time, batch.state_dim, batch.action_dim) == (1000, 0.05, 17, 6)
    batch.reset([0, 1])
    for step in range(1000):
        _, _, terminated, truncated = batch.step(np.zeros((2, 6)))
        assert truncated.all() == (step == 999)
    assert not terminated.any()
    assert batch.step(np.zeros((2, 6)))[1].tolist() == [0.0, 0.0]


def test_other_environments_use_gymnasium():
    batch = BatchedEnv("InvertedPendulum-v5", 3)
    env = make_env("InvertedPendulum-v5")
    assert batch.engine == "gymnasium"
    assert np.array_equal(batch.reset([4, 5, 6])[2], env.reset(seed=6)[0])
    assert np.array_equal(batch.step(np.full((3, 1), 0.5))[0][2], env.step(np.array([0.5]))[0])


def test_options_and_wrappers_of_an_id_take_effect():
    """The batched tasks reproduce classes without options."""
    half = {"min_action": np.float32(-0.5), "max_action": np.float32(0.5)}
    wrapper = WrapperSpec("RescaleAction", "gymnasium.wrappers:RescaleAction", half)
    ids = {"Weighed-v0": {"kwargs": {"ctrl_cost_weight": 5.0}}, "Rescaled-v0": {"additional_wrappers": (wrapper,)}}
    for env_id, options in ids.items():
        gymnasium.register(env_id, "gymnasium.envs.mujoco.half_cheetah_v4:HalfCheetahEnv", max_episode_steps=9, **options)
        batch, env = BatchedEnv(env_id, 2), make_env(env_id)
        del gymnasium.registry[env_id]
        assert batch.engine == "gymnasium"
        assert np.array_equal(batch.reset([0, 0])[0], env.reset(seed=0)[0])
        observation, reward, _, _ = batch.step(np.full((2, 6), 0.4))
        expected, pay, *_ = env.step(np.full(6, 0.4))
        assert np.array_equal(observation[0], expected)
        assert reward[0] == pay


@pytest.mark.parametrize(
    ("env_id", "seconds"), [("PointMaze_UMaze-v3", 0.01), ("AntMaze_UMaze-v4", 0.05), ("Hopper-v4", 0.008)]
)
def test_step_time(env_id, seconds):
    assert BatchedEnv(env_id, 1).step_time == pytest.approx(seconds)


def test_invalid_arguments_are_rejected():
    with pytest.raises(ValueError, match=r"^n: .*at least 1 .*got 0"):
        BatchedEnv("Hopper-v4", 0)
    with pytest.raises(ValueError, match=r"^engine: .*got 'async'"):
        BatchedEnv("Hopper-v4", 1, engine="async")
    with pytest.raises(
        ValueError, match=r"^engine: 'mujoco\.batch' .*AntEnv, AntMazeEnv, HalfCheetahEnv, HopperEnv.*got 'InvertedPendulum-v5'"
    ):
        BatchedEnv("InvertedPendulum-v5", 1, engine="mujoco.batch")
    batch = BatchedEnv("Hopper-v4", 2)
    with pytest.raises(ValueError, match=r"^step: .*rows \[0, 1\]"):
        batch.step(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"^seeds: expected 2, .*got 1"):
        batch.reset([0])
    with pytest.raises(ValueError, match=r"^rows: .*\[0, 2\), got \[2\]"):
        batch.reset([0], rows=[2])
    batch.reset([0, 1])
    with pytest.raises(ValueError, match=r"^actions: .*\(2, 3\), got \(3,\)"):
        batch.step(np.zeros(3))
    with pytest.raises(ValueError, match=r"^actions: .*finite .*in row 1"):
        batch.step(np.array([[0, 0, 0], [0, np.nan, 0]]))
