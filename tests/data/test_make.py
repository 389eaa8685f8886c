"""Generated data: collection, data sets on disk, interrupted writers, catalogue."""

import multiprocessing
import os
import shutil
import signal
import time

import gymnasium
import minari
import numpy as np
import pytest

from jacrec.data import catalog, describe, list_datasets, load, make_dataset
from jacrec.data.behaviour import make as make_module
from jacrec.data.behaviour.collect import BehaviourStage, Episode, collect
from jacrec.data.behaviour.linear_policy import load_action_noise, load_snapshots
from jacrec.data.behaviour.make import KINDS, available_kinds, behaviour_stages, default_id, make_episodes, medium_index
from jacrec.data.readers import minari as minari_module
from jacrec.envs.physics import make_env


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def test_collected_episodes_replay_in_gymnasium():
    stages = behaviour_stages("hopper", "medium-replay")
    episodes = collect("Hopper-v4", stages, steps=600, seed=3, threads=1)
    assert sum(map(len, episodes)) == 600
    env = make_env("Hopper-v4")
    first = np.random.default_rng([3, 0, 0])
    observation, _ = env.reset(seed=int(first.integers(2**31)))
    draws = first.standard_normal((1000, 3))
    episode = episodes[0]
    assert np.array_equal(episode.observations[0], observation)
    for k, action in enumerate(episode.actions):
        wish = stages[0].policy(observation) + stages[0].noise * draws[k]
        assert np.array_equal(action, np.clip(wish, -1, 1).astype(np.float32))
        observation, reward, terminated, _, _ = env.step(action.astype(np.float64))
        assert np.array_equal(episode.observations[k + 1], observation)
        assert episode.rewards[k] == reward
    assert episode.terminated
    assert terminated


def test_data_do_not_depend_on_rows_and_threads():
    stages = behaviour_stages("hopper", "medium-expert")
    found = [
        collect("Hopper-v4", stages, steps=3000, seed=1, threads=threads, rows=rows)
        for rows, threads in ((1, 1), (5, 2), (30, 2))
    ]
    for other in found[1:]:
        assert len(other) == len(found[0])
        for actual, expected in zip(other, found[0], strict=True):
            assert np.array_equal(actual.observations, expected.observations)
            assert np.array_equal(actual.actions, expected.actions)
            assert np.array_equal(actual.rewards, expected.rewards)
            assert actual.terminated == expected.terminated


def test_shares_are_equal_and_only_the_last_episode_is_truncated():
    still, fall = BehaviourStage("still", lambda s: np.zeros((len(s), 3))), BehaviourStage("random", None)
    seen = []
    episodes = collect("Hopper-v4", [still, fall], steps=500, seed=0, progress=seen.append)
    steps = np.cumsum([len(episode) for episode in episodes])
    assert steps[-1] == 500
    assert all(episode.terminated for episode in episodes[:-1])
    quiet = np.array([not episode.actions.any() for episode in episodes])
    assert quiet[: quiet.sum()].all()
    assert steps[quiet.sum() - 1] >= 250 > steps[quiet.sum() - 2]
    assert seen == sorted(seen)
    assert seen[-1] == 500
    with pytest.raises(ValueError, match=r"^steps: .*2 stages.*got 1"):
        collect("Hopper-v4", [still, fall], steps=1, seed=0)


@pytest.mark.parametrize("env_name", ["hopper", "halfcheetah"])
def test_snapshots_go_from_nearly_random_to_good(env_name):
    returns = np.array([snapshot.mean_return for snapshot in load_snapshots(env_name)])
    assert len(returns) >= 6
    assert returns[0] < 0.1 * returns[-1]
    assert returns[-1] == returns.max() > {"hopper": 2500, "halfcheetah": 2500}[env_name]
    medium = medium_index(load_snapshots(env_name))
    assert 0.3 * returns[-1] < returns[medium] < 0.7 * returns[-1]
    assert 0 < medium < len(returns) - 1
    assert load_action_noise(env_name) > 0


def test_the_best_hopper_snapshot_has_its_recorded_return():
    snapshot, noise = load_snapshots("hopper")[-1], load_action_noise("hopper")
    episodes = collect("Hopper-v4", [BehaviourStage("best", snapshot.policy, noise)], steps=10_000, seed=5)
    complete = [episode.rewards.sum() for episode in episodes[:-1]]
    assert np.mean(complete) == pytest.approx(snapshot.mean_return, rel=0.2)


def test_kinds_are_built_from_the_snapshots():
    snapshots = load_snapshots("hopper")
    medium, best = snapshots[medium_index(snapshots)].policy, snapshots[-1].policy
    policies = {kind: [stage.policy for stage in behaviour_stages("hopper", kind)] for kind in KINDS}
    assert policies["random"] == [None]
    assert policies["medium"] == [medium]
    assert policies["expert"] == [best]
    assert policies["medium-expert"] == [medium, best]
    assert policies["medium-replay"] == [s.policy for s in snapshots[: medium_index(snapshots) + 1]]
    assert policies["full-replay"] == [s.policy for s in snapshots]
    with pytest.raises(ValueError, match=r"^env_name: .*'hopper', .*got 'walker'"):
        behaviour_stages("walker", "medium")
    with pytest.raises(ValueError, match=r"^kind of hopper: .*'random', 'medium', .*got 'simple'"):
        behaviour_stages("hopper", "simple")
    with pytest.raises(ValueError, match=r"^kind of pointmaze-umaze: .*'random', 'expert', got 'medium'"):
        behaviour_stages("pointmaze-umaze", "medium")


def test_a_generated_data_set_reads_back_as_collected(root):
    made = make_dataset("hopper", "medium-replay", steps=500, seed=2)
    assert made.dataset_id == "jacrec/hopper-medium-replay-v0"
    assert made.path == root / made.dataset_id
    assert (made.steps, made.seconds > 0) == (500, True)
    episodes = make_episodes("hopper", "medium-replay", steps=500, seed=2)
    assert made.episodes == len(episodes)
    data = load(made.dataset_id)
    assert len(data) == 500
    assert np.array_equal(data.state, np.concatenate([e.observations[:-1] for e in episodes]).astype(np.float32))
    assert np.array_equal(data.next_state, np.concatenate([e.observations[1:] for e in episodes]).astype(np.float32))
    assert np.array_equal(data.action, np.concatenate([e.actions for e in episodes]))
    assert np.array_equal(data.reward, np.concatenate([e.rewards for e in episodes]).astype(np.float32))
    assert np.array_equal(np.flatnonzero(~data.has_next_action), np.cumsum([len(e) for e in episodes]) - 1)
    assert data.terminal.sum() == sum(e.terminated for e in episodes)
    inside = np.flatnonzero(data.has_next_action)
    assert np.array_equal(data.next_action[inside], data.action[inside + 1])
    info = data.info
    assert (info.env_id, info.ref_min, info.ref_max) == ("Hopper-v4", -20.272305, 3234.3)
    assert info.physics["margins_halved"] is True
    assert len(data.for_td()) == 500 - (not episodes[-1].terminated)


def test_a_generated_data_set_is_a_minari_data_set(root):
    make_dataset("hopper", "random", steps=200)
    dataset = minari.load_dataset("jacrec/hopper-random-v0")
    assert dataset.total_steps == 200
    assert dataset.spec.env_spec.id == "Hopper-v4"
    assert minari.namespace.list_local_namespaces() == ["jacrec"]
    assert list(minari.list_local_datasets()) == ["jacrec/hopper-random-v0"]
    score = minari.get_normalized_score(dataset, np.array([3234.3]))
    assert score == pytest.approx(1.0)
    record = dataset.storage.metadata["jacrec"]
    assert record["policies"] == [{"name": "random", "noise": 0.0}]
    assert (record["kind"], record["seed"], record["env_name"]) == ("random", 0, "hopper")


def test_existing_data_sets_are_replaced_only_with_overwrite(root):
    make_dataset("hopper", "random", steps=100)
    with pytest.raises(FileExistsError, match=r"^jacrec/hopper-random-v0: already exists at .*overwrite=True"):
        make_dataset("hopper", "random", steps=150)
    assert len(load("jacrec/hopper-random-v0")) == 100
    make_dataset("hopper", "random", steps=150, overwrite=True)
    assert len(load("jacrec/hopper-random-v0")) == 150
    assert hidden(root) == []


def test_a_failed_write_keeps_the_old_data_set(root, monkeypatch):
    make_dataset("hopper", "random", steps=100)

    def fail(self, episodes):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("minari.dataset._storages.hdf5_storage.HDF5Storage.update_episodes", fail)
        with pytest.raises(OSError, match="disk full"):
            make_dataset("hopper", "random", steps=150, overwrite=True)
        with pytest.raises(OSError, match="disk full"):
            make_dataset("hopper", "medium", steps=150)
    assert hidden(root) == []
    assert [row.dataset_id for row in list_datasets()] == ["jacrec/hopper-random-v0"]
    assert len(load("jacrec/hopper-random-v0")) == 100


def _write_slowly(ready) -> None:
    from minari.dataset._storages.hdf5_storage import HDF5Storage

    def stall(self, episodes):
        ready.set()
        time.sleep(60)

    HDF5Storage.update_episodes = stall
    make_dataset("hopper", "random", steps=100)


def test_a_killed_writer_leaves_no_data_set_and_does_not_block_the_next(root):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_write_slowly, args=(ready,))
    process.start()
    assert ready.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list_datasets() == []
    assert len(hidden(root)) == 1
    make_dataset("hopper", "random", steps=100)
    assert len(load("jacrec/hopper-random-v0")) == 100
    assert hidden(root) == []


def test_an_incomplete_data_set_is_replaced(root):
    (root / "jacrec/hopper-random-v0/data").mkdir(parents=True)
    assert list_datasets() == []
    with pytest.raises(FileNotFoundError, match=r"^jacrec/hopper-random-v0: incomplete data set at .*`jacrec data make`"):
        load("jacrec/hopper-random-v0")
    make_dataset("hopper", "random", steps=100)
    assert len(load("jacrec/hopper-random-v0")) == 100


def test_wrong_shapes_are_rejected_before_anything_is_written(root):
    env = gymnasium.make("InvertedPendulum-v5").unwrapped
    good = Episode(np.zeros((4, 4)), np.zeros((3, 1), np.float32), np.zeros(3), True)
    for bad, message in [
        (
            Episode(good.observations[:3], good.actions, good.rewards, True),
            r"^test/pendulum-v0: episode 1: observations: .*\(4, 4\) .*got \(3, 4\)",
        ),
        (
            Episode(np.zeros((4, 5)), good.actions, good.rewards, True),
            r"^test/pendulum-v0: episode 1: observations: .*\(4, 4\) .*got \(4, 5\)",
        ),
        (
            Episode(good.observations, np.zeros((3, 2)), good.rewards, True),
            r"^test/pendulum-v0: episode 1: actions: .*\(3, 1\) .*got \(3, 2\)",
        ),
        (Episode(np.zeros((1, 4)), np.zeros((0, 1)), np.zeros(0), True), "at least one step"),
        (
            Episode(good.observations + np.nan, good.actions, good.rewards, True),
            r"episode 1: observations: .*finite .*at step 0",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            minari_module.write_minari("test/pendulum-v0", [good, bad], env=env, metadata={})
    with pytest.raises(ValueError, match=r"^test/pendulum-v0: expected episodes, got none"):
        minari_module.write_minari("test/pendulum-v0", [], env=env, metadata={})
    assert not root.exists() or list(root.iterdir()) == []
    minari_module.write_minari("test/pendulum-v0", [good, good], env=env, metadata={})
    data = load("test/pendulum-v0")
    assert (len(data), data.info.env_id, data.info.ref_min) == (6, "InvertedPendulum-v5", None)


def test_missing_data_sets_list_local_ones_and_remedies(monkeypatch):
    make_dataset("hopper", "random", steps=100)
    with pytest.raises(
        FileNotFoundError, match=r"^jacrec/hopper-medium-v0: .*local data sets: jacrec/hopper-random-v0; .*`jacrec data make`"
    ):
        load("jacrec/hopper-medium-v0")

    def unreachable(dataset_id, force_download=False):
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(minari, "download_dataset", unreachable)
    with pytest.raises(
        FileNotFoundError,
        match=r"^mujoco/hopper/expert-v0: .*pip install 'minari\[hf\]'.*\(ConnectionError: no route to host\)",
    ):
        load("mujoco/hopper/expert-v0")
    with pytest.raises(FileNotFoundError, match=r"^mujoco/hopper/expert-v0: .*download: not attempted"):
        load("mujoco/hopper/expert-v0", download=False)
    with pytest.raises(ValueError, match=r"^dataset_id: .*\(namespace/\)name-v<number>.*got 'hopper'"):
        load("hopper")


def test_downloads_are_read(monkeypatch, root):
    made = make_dataset("hopper", "random", steps=100)
    there = root / "mujoco/hopper/simple-v0"

    def download(dataset_id, force_download=False):
        shutil.copytree(made.path, there)

    monkeypatch.setattr(minari, "download_dataset", download)
    assert len(load("mujoco/hopper/simple-v0")) == 100


def test_the_catalogue_describes_local_data_sets():
    make_dataset("halfcheetah", "random", steps=2500)
    make_dataset("hopper", "expert", steps=300)
    cheetah, hopper = list_datasets()
    assert (cheetah.dataset_id, cheetah.kind, cheetah.env_id) == ("jacrec/halfcheetah-random-v0", "random", "HalfCheetah-v4")
    assert (cheetah.episodes, cheetah.steps, hopper.steps) == (3, 2500, 300)
    assert cheetah.megabytes > 0.1
    shown = describe(cheetah.dataset_id)
    data = load(cheetah.dataset_id)
    returns = [data.reward[data.episode == i].astype(np.float64).sum() for i in range(3)]
    assert (shown.returns.min, shown.returns.max) == pytest.approx((min(returns), max(returns)))
    assert (shown.returns.mean, shown.returns.std) == pytest.approx((np.mean(returns), np.std(returns)))
    assert shown.scores.mean == pytest.approx(np.mean(data.info.score(returns)))
    assert (shown.lengths.min, shown.lengths.max, shown.termination_share) == (500, 1000, 0.0)
    assert (shown.state_dim, shown.action_dim, shown.made_by["kind"]) == (17, 6, "random")
    assert describe(hopper.dataset_id).lengths.mean == 300
    assert catalog.episode_table(load(hopper.dataset_id))[2].tolist() == [False]


def test_default_ids_are_minari_ids():
    for name in make_module.ENV_NAMES:
        for kind in available_kinds(name):
            assert minari_module.dataset_path(default_id(name, kind)).name == f"{name}-{kind}-v0"


def hidden(root) -> list[str]:
    return [path.name for path in root.iterdir() if path.name.startswith(".")]


def test_random_data_can_be_generated_for_any_gymnasium_environment(root):
    made = make_dataset("MountainCarContinuous-v0", "random", steps=1200, seed=1)
    assert made.dataset_id == "jacrec/MountainCarContinuous-v0-random-v0"
    data = load(made.dataset_id)
    assert len(data) == 1200
    assert data.info.env_id == "MountainCarContinuous-v0"
    assert data.action.min() < -0.9
    assert data.action.max() > 0.9


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("CartPole-v1", "random", "^env_id: .*got 'CartPole-v1'"),
        ("Walker2d-v4", "medium", "^kind of Walker2d-v4: .*'random', got 'medium'"),
        ("Nothing-v0", "random", "^env_name: .*got 'Nothing-v0'"),
    ],
)
def test_unsuitable_environments_are_rejected(root, name, kind, message):
    with pytest.raises(ValueError, match=message):
        make_dataset(name, kind, steps=300)
