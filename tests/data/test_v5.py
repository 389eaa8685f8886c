"""Minari data sets of gymnasium's -v5 environments: what was recorded is what an evaluation plays."""

import json

import numpy as np
import pytest

from jacrec.data import load
from jacrec.data.behaviour.collect import Episode
from jacrec.data.readers.minari import dataset_path, write_minari
from jacrec.data.readers.minari_files import METADATA
from jacrec.envs.actions import ActionBox, played_box
from jacrec.envs.batch import BatchedEnv
from jacrec.envs.physics import make_env

STEPS = 12


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


def record(env_id: str, name: str) -> None:
    """A data set of one episode of random actions from seed 3."""
    env, rng = make_env(env_id), np.random.default_rng(0)
    observations, actions, rewards = [env.reset(seed=3)[0]], [], []
    for _ in range(STEPS):
        actions.append(rng.uniform(env.action_space.low, env.action_space.high).astype(np.float32))
        observation, reward, terminated, *_ = env.step(actions[-1])
        observations.append(observation)
        rewards.append(reward)
        if terminated:
            break
    write_minari(
        name, [Episode(np.array(observations), np.array(actions), np.array(rewards), terminated)], env=env, metadata={}
    )
    env.close()


@pytest.mark.parametrize(
    ("env_id", "sizes", "box"),
    [
        ("Hopper-v5", (11, 3), ActionBox((-1.0,) * 3, (1.0,) * 3)),
        ("Ant-v5", (105, 8), ActionBox((-1.0,) * 8, (1.0,) * 8)),
        ("InvertedPendulum-v5", (4, 1), ActionBox((-3.0,), (3.0,))),
        ("Pusher-v5", (23, 7), ActionBox((-2.0,) * 7, (2.0,) * 7)),
    ],
)
def test_a_recorded_episode_is_played_again(env_id, sizes, box):
    record(env_id, "test/own-v0")
    data = load("test/own-v0")
    assert (data.state_dim, data.action_dim) == sizes
    assert (data.info.env_id, data.info.action_box) == (env_id, box)
    assert np.abs(data.action).max() <= 1.0
    env = BatchedEnv(env_id, 1)
    env.action_box = played_box(env.action_space, env_id, data.info.action_box)
    seen = env.reset([3])
    for t in range(len(data)):
        np.testing.assert_allclose(seen[0], data.state[t], rtol=1e-4, atol=1e-4)  # actions were rounded to float32 once more
        seen, reward, terminated, _ = env.step(data.action[t : t + 1].astype(np.float64))
        np.testing.assert_allclose(reward[0], data.reward[t], rtol=1e-4, atol=1e-4)
        assert terminated[0] == data.terminal[t]
    env.close()


def test_options_that_an_evaluation_lacks_are_told():
    record("Hopper-v5", "test/own-v0")
    path = dataset_path("test/own-v0") / METADATA
    metadata = json.loads(path.read_text())
    spec = json.loads(metadata["env_spec"])
    for options in ({}, None, "damaged"):
        spec["kwargs"] = options
        path.write_text(json.dumps(metadata | {"env_spec": json.dumps(spec)}))
        load("test/own-v0")
    spec["kwargs"] = {"terminate_when_unhealthy": False}
    path.write_text(json.dumps(metadata | {"env_spec": json.dumps(spec)}))
    with pytest.warns(UserWarning, match="recorded in Hopper-v5 with terminate_when_unhealthy=False.*--env-id"):
        load("test/own-v0")
    load("test/own-v0", env_id="Hopper-v5")
