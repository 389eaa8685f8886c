"""Policies act in [-1, 1], environments in their own units: Pendulum (±2) through data, eval, live, deploy and rehearse."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
import yaml

from jacrec.control.config import MPCConfig
from jacrec.data import from_arrays
from jacrec.evaluation.config import EvalConfig
from jacrec.evaluation.evaluate import evaluate
from jacrec.evaluation.live import LiveConfig, play_live
from jacrec.evaluation.rehearsal import RehearsalConfig, rehearse_run
from jacrec.online.config import DeployConfig, RefreshConfig
from jacrec.online.deploy import deploy
from jacrec.online.replay_buffer import ReplayReader
from jacrec.training.config import DynamicsConfig, ReBRACConfig, RewardConfig, TrainConfig
from jacrec.training.run import Run, load_run, train

PLAIN = MPCConfig(horizon=1, particles=1, updates=0)
STEPS = 30
SETTINGS = {"env_id": "Pendulum-v1", "max_episode_steps": STEPS}


def pendulum_rows(episodes=4, steps=STEPS):
    """(observations, actions, rewards, terminals, ends) of random torques in ±2."""
    rng, rows = np.random.default_rng(0), []
    env = gymnasium.make("Pendulum-v1", max_episode_steps=steps)
    for episode in range(episodes):
        observation, over = env.reset(seed=episode)[0], False
        while not over:
            action = rng.uniform(-2, 2, 1).astype(np.float32)
            following, reward, _, over, _ = env.step(action)
            rows.append((observation, action, reward, False, over))
            observation = following
    return [np.array(column) for column in zip(*rows, strict=True)]


def train_on(data, out, **settings):
    config = TrainConfig(
        data="arrays",
        rebrac=ReBRACConfig(hidden=(8,), updates=3, batch_size=16),
        dynamics=DynamicsConfig(hidden=(8,), steps=2, updates=3, batch_size=16, eval_transitions=5),
        reward=RewardConfig(hidden=(8,), updates=3, batch_size=16, eval_transitions=5),
        held_out=0.3,
        **settings,
    )
    return train(config, out, data=data, quiet=True)


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory) -> Run:
    """A run trained on torques of ±2, whose actions are not all small."""
    *arrays, ends = pendulum_rows()
    data = from_arrays(*arrays, ends=ends, env_id="Pendulum-v1", action_low=-2.0, action_high=2.0)
    run = load_run(train_on(data, tmp_path_factory.mktemp("pendulum") / "run"))
    torch.nn.init.normal_(run.policy.mlp.layers[-1].weight, generator=torch.Generator().manual_seed(0))
    return run


def own_loop(run: Run, seed: int, scale: float, steps: int = STEPS) -> float:
    """The return of a hand-written loop with actions × `scale`."""
    env = gymnasium.make("Pendulum-v1", max_episode_steps=steps)
    observation, total, over = env.reset(seed=seed)[0], 0.0, False
    while not over:
        with torch.no_grad():
            action = run.policy(torch.as_tensor(observation)).numpy()
        observation, reward, _, over, _ = env.step(action * scale)
        total += float(reward)
    return total


def test_arrays_are_mapped_to_one_and_the_bounds_recorded(pendulum):
    *arrays, ends = pendulum_rows()
    data = from_arrays(*arrays, ends=ends, action_low=-2.0, action_high=2.0)
    assert data.action == pytest.approx(arrays[1][~ends] / 2, abs=1e-7)
    assert np.abs(data.action).max() > 0.9
    assert (pendulum.info.action_low, pendulum.info.action_high) == ((-2.0,), (2.0,))
    with pytest.raises(ValueError, match=r"arrays: actions: expected \[-1, 1\].*action_low.*rescale"):
        from_arrays(*arrays, ends=ends)
    with pytest.raises(ValueError, match=r"arrays: actions: expected \[-1\.5, 1\.5\], got .*in row"):
        from_arrays(*arrays, ends=ends, action_low=-1.5, action_high=1.5)
    with pytest.raises(ValueError, match=r"action_low, action_high: expected 1 or 1 numbers.*got 2"):
        from_arrays(*arrays, ends=ends, action_low=[-2.0, -2.0], action_high=[2.0, 2.0])


def test_eval_plays_scaled_actions(pendulum, tmp_path):
    record = evaluate(pendulum, EvalConfig(episodes=2, mpc=PLAIN, **SETTINGS), out=tmp_path, quiet=True)
    expected = [own_loop(pendulum, seed, 2.0) for seed in (42000, 42001)]
    assert expected != pytest.approx([own_loop(pendulum, seed, 1.0) for seed in (42000, 42001)], rel=1e-2)
    for name in ("base", "mpc"):
        assert record["contestants"][name]["returns"] == pytest.approx(expected, rel=1e-4)
    environment = record["environment"]
    assert (environment["action_low"], environment["action_high"], environment["max_episode_steps"]) == ([-2.0], [2.0], STEPS)


@pytest.mark.parametrize("base", [True, False])
def test_live_plays_scaled_actions(pendulum, base):
    log = play_live(pendulum, LiveConfig(base=base, mpc=PLAIN, seed=7, speed=2.0, **SETTINGS))
    if not log.held:  # the machine may be busy
        assert log.total == pytest.approx(own_loop(pendulum, 7, 2.0), rel=1e-4)
    assert log.steps == STEPS


def test_deploy_plays_scaled_actions_and_records_those_of_the_policy(pendulum, tmp_path):
    config = DeployConfig(episodes=1, mpc=PLAIN, online=RefreshConfig(enabled=False), **SETTINGS)
    record = deploy(pendulum, config, out=tmp_path / "deployed", say=lambda _: None)
    assert record["episodes"][0]["return"] == pytest.approx(own_loop(pendulum, 42000, 2.0), rel=1e-4)
    replay = ReplayReader(tmp_path / "deployed").transitions()
    with torch.no_grad():
        assert replay.action == pytest.approx(pendulum.policy(torch.as_tensor(replay.state)).numpy(), abs=1e-5)


def test_bounds_that_contradict_the_data_need_a_choice(pendulum, tmp_path):
    physical = replace(pendulum, info=replace(pendulum.info, action_low=(-1.0,), action_high=(1.0,)))
    config = EvalConfig(episodes=1, contestants=(), **SETTINGS)
    with pytest.raises(ValueError, match=r"Pendulum-v1: .*\[-1, 1\].*\[-2, 2\].*--action-bounds"):
        evaluate(physical, config, out=tmp_path / "none", quiet=True)
    with pytest.raises(ValueError, match=r"Pendulum-v1: .*--action-bounds"):
        play_live(physical, LiveConfig(base=True, seconds=0.1, env_id="Pendulum-v1"))
    with pytest.raises(ValueError, match=r"Pendulum-v1: .*--action-bounds"):
        deploy(physical, DeployConfig(episodes=1, **SETTINGS), out=tmp_path / "deployed")
    assert not list(tmp_path.iterdir())
    for choice, scale in (("data", 1.0), ("env", 2.0)):
        played = evaluate(physical, replace(config, action_bounds=choice), out=tmp_path / choice, quiet=True)
        assert played["contestants"]["base"]["returns"] == pytest.approx([own_loop(pendulum, 42000, scale)], rel=1e-4)


def test_actions_already_in_one_stand_for_the_environments_bounds(pendulum, tmp_path):
    unstated = replace(pendulum, info=replace(pendulum.info, action_low=None, action_high=None))
    played = evaluate(unstated, EvalConfig(episodes=1, contestants=(), **SETTINGS), out=tmp_path, quiet=True)
    assert played["contestants"]["base"]["returns"] == pytest.approx([own_loop(pendulum, 42000, 2.0)], rel=1e-4)


def test_a_run_of_an_earlier_version_needs_a_choice(pendulum, tmp_path):
    file = pendulum.path / "config.yaml"
    before = file.read_text()
    record = yaml.safe_load(before)
    del record["data"]["action_low"], record["data"]["action_high"]
    file.write_text(yaml.safe_dump(record))
    try:
        old = load_run(pendulum.path)
    finally:
        file.write_text(before)
    with pytest.raises(ValueError, match=r"Pendulum-v1: .*\[-1, 1\].*--action-bounds"):
        evaluate(old, EvalConfig(episodes=1, **SETTINGS), out=tmp_path, quiet=True)


def test_settings_beside_data_that_state_other_bounds_are_refused(tmp_path):
    *arrays, ends = pendulum_rows()
    data = from_arrays(*arrays, ends=ends, action_low=-2.0, action_high=2.0)
    with pytest.raises(ValueError, match=r"action_low, action_high: .*\[-2, 2\], got \[-3, 3\]"):
        train_on(data, tmp_path / "run", action_low=(-3.0,), action_high=(3.0,))


@pytest.fixture
def endless():
    gymnasium.register("Endless-v0", "gymnasium.envs.classic_control.pendulum:PendulumEnv")
    yield {"env_id": "Endless-v0"}
    del gymnasium.registry["Endless-v0"]


def test_an_environment_without_a_time_limit_is_refused(pendulum, endless, tmp_path):
    message = r"Endless-v0: .*time limit.*--max-episode-steps"
    with pytest.raises(ValueError, match=message):
        evaluate(pendulum, EvalConfig(episodes=1, **endless), out=tmp_path / "none", quiet=True)
    with pytest.raises(ValueError, match=message):
        play_live(pendulum, LiveConfig(base=True, **endless))
    with pytest.raises(ValueError, match=message):
        deploy(pendulum, DeployConfig(episodes=1, **endless), out=tmp_path / "deployed")
    assert not list(tmp_path.iterdir())
    limited = evaluate(
        pendulum, EvalConfig(episodes=1, contestants=(), max_episode_steps=7, **endless), out=tmp_path, quiet=True
    )
    assert limited["contestants"]["base"]["lengths"] == [7]
    assert play_live(pendulum, LiveConfig(base=True, seconds=0.1, **endless)).steps == 2
    # a rehearsal takes no step in the environment
    found = rehearse_run(pendulum, {"mine": PLAIN}, RehearsalConfig(episodes=2, steps=2), EvalConfig(episodes=1, **endless))
    assert found["choice"] == "base"


@pytest.mark.parametrize("kind", [EvalConfig, LiveConfig, DeployConfig])
def test_invalid_settings_are_refused(kind):
    with pytest.raises(ValueError, match=r"max_episode_steps: .*>= 1, got 0"):
        kind(max_episode_steps=0)
    with pytest.raises(ValueError, match=r"action_bounds: .*'env', 'data'.*got 'mine'"):
        kind(action_bounds="mine")
