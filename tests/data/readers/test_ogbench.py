"""OGBench's single tasks: names, files, relabelled rewards, and the success as the score."""

import sys

import numpy as np
import pytest

from jacrec import cli
from jacrec.data import from_arrays, load
from jacrec.data.catalog import describe
from jacrec.data.download import get
from jacrec.data.readers.ogbench import MAGIC, ogbench_file, validation_file
from jacrec.data.transitions import DatasetInfo
from jacrec.envs.ogbench import is_single_task, ogbench, single_task
from jacrec.envs.physics import make_env
from jacrec.training.folder import digest
from jacrec.training.loop import read_metrics
from tests.commands.test_cli import TINY

NAME = "pointmaze-medium-navigate-singletask-v0"


@pytest.mark.parametrize(
    ("name", "dataset", "env_id"),
    [
        ("cube-single-play-singletask-v0", "cube-single-play-v0", "cube-single-singletask-v0"),
        ("puzzle-4x4-play-singletask-task5-v0", "puzzle-4x4-play-v0", "puzzle-4x4-singletask-task5-v0"),
        ("antmaze-large-navigate-singletask-task1-v0", "antmaze-large-navigate-v0", "antmaze-large-singletask-task1-v0"),
    ],
)
def test_a_name_says_which_file_and_which_environment(name, dataset, env_id):
    assert single_task(name) == (dataset, env_id)
    assert is_single_task(name)
    assert is_single_task(env_id)


@pytest.mark.parametrize("name", ["singletask-v0", "cube-singletask-v0", "cube-single-play-singletask"])
def test_half_a_name_is_refused(name):
    with pytest.raises(ValueError, match=f"name: expected ENVIRONMENT-KIND-singletask-v0.*got '{name}'"):
        single_task(name)


@pytest.mark.parametrize("name", ["cube-single-play-v0", "mine/a-singletask-v0", "hopper-medium-v2", None])
def test_other_names_are_not_ogbenchs(name):
    assert not is_single_task(name)


def test_the_score_is_the_success():
    info = DatasetInfo("x", "cube-single-singletask-v0")
    assert info.scored
    assert info.score([-200.0, -30.0], [False, True]).tolist() == [0.0, 100.0]
    with pytest.raises(ValueError, match="terminated: expected one flag per episode"):
        info.score([-200.0])
    assert not DatasetInfo("x", "Some-v0").scored


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ogbench", None)
    assert cli.main(["data", "show", NAME]) == 2
    assert f"expected OGBench's file {ogbench_file(NAME)}, got none; `jacrec data get {NAME}`" in capsys.readouterr().err
    for call in (ogbench, lambda: make_env("cube-single-singletask-v0")):
        with pytest.raises(ValueError, match=r"ogbench: expected an installed package.*pip install 'jacrec\[ogbench\]'"):
            call()


def test_a_file_is_downloaded_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    seen = []

    def fetch(url, path, **options):
        seen.append((url, options["magic"]))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(MAGIC + b"...")
        return "0" * 64

    monkeypatch.setattr("jacrec.data.download.fetch", fetch)
    got = get("cube-single-play-singletask-task2-v0")
    assert got.path == tmp_path / ".ogbench/data/cube-single-play-v0.npz"
    assert got.fetched
    at = "https://rail.eecs.berkeley.edu/datasets/ogbench"
    assert seen == [(f"{at}/cube-single-play-v0.npz", MAGIC), (f"{at}/cube-single-play-v0-val.npz", MAGIC)]
    seen.clear()
    assert not get("cube-single-play-singletask-task2-v0").fetched
    assert seen == []
    (tmp_path / ".ogbench/data/cube-single-play-v0-val.npz").unlink()  # as an earlier version left it
    assert get("cube-single-play-singletask-task2-v0").fetched
    assert [url for url, _ in seen] == [f"{at}/cube-single-play-v0-val.npz"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with a small PointMaze set of OGBench: a walk to the goal and beyond, and one that stays at the start."""
    pytest.importorskip("ogbench", reason="needs ogbench, pip install 'jacrec[ogbench]'")
    monkeypatch.setenv("HOME", str(tmp_path))
    env = make_env("pointmaze-medium-singletask-v0")
    env.reset(seed=0)
    goal = env.unwrapped.cur_goal_xy
    env.close()
    at = np.concatenate([np.linspace([0.0, 0.0], goal, 60), goal + np.linspace([0.0, 0.0], [5.0, 5.0], 40)])
    observations = np.concatenate([at, np.zeros((50, 2))]).astype(np.float32)
    terminals = np.isin(np.arange(150), (99, 149))
    actions = np.random.default_rng(0).uniform(-1, 1, (150, 2)).astype(np.float32)
    path = ogbench_file(NAME)
    path.parent.mkdir(parents=True)
    np.savez(path, observations=observations, actions=actions, terminals=terminals, qpos=observations, qvel=0 * observations)
    return tmp_path


def test_a_file_gets_the_tasks_rewards(home):
    data = load(NAME)
    assert (len(data), data.info.env_id) == (148, "pointmaze-medium-singletask-v0")  # the last rows are observations alone
    assert data.episode.tolist() == [0] * 99 + [1] * 49
    reached = data.terminal
    assert reached[59]
    assert 0 < reached.sum() < 40
    assert np.array_equal(data.reward, reached - 1.0)
    assert np.flatnonzero(~data.has_next_action).tolist() == [98, 147]  # the trajectory goes on beyond the goal
    np.testing.assert_array_equal(data.next_state[:98], data.state[1:99])
    shown = describe(NAME)
    assert (shown.scores.mean, shown.termination_share, shown.lengths.max) == (50.0, 0.5, 99.0)


def test_the_file_for_validation_is_held_out(home, capsys):
    alone = load(NAME)
    assert alone.validation is None
    path = ogbench_file(NAME)
    validation_file(path).write_bytes(path.read_bytes())
    data = load(NAME)
    assert len(data.validation) == 148
    assert np.array_equal(data.validation.reward, alone.reward)
    kept, held_out = data.split(0.1, 0)
    assert (len(kept), held_out is data.validation, kept.validation) == (148, True, None)
    assert digest(data) != digest(alone) == digest(kept)
    assert cli.main(["data", "show", NAME]) == 0
    assert "148 more (-val.npz)" in capsys.readouterr().out
    validation_file(path).write_bytes(b"")
    with pytest.raises(ValueError, match=f"{validation_file(path)}: expected a .npz archive"):
        load(NAME)


def test_a_damaged_file_is_named(home):
    path = ogbench_file(NAME)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"{path}: expected a .npz archive"):
        load(NAME)
    np.savez(path, observations=np.zeros((3, 2)))
    with pytest.raises(ValueError, match=f"{path}: expected OGBench's arrays.*--overwrite"):
        load(NAME)


def test_a_set_goes_from_data_to_report(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    assert cli.main(["data", "show", NAME]) == 0
    assert "50.0 ± 50.0" in capsys.readouterr().out
    validation_file(ogbench_file(NAME)).write_bytes(ogbench_file(NAME).read_bytes())
    assert cli.main(["train", NAME, "--out", "run", *TINY, "--reward.eval-transitions", "200"]) == 0
    assert read_metrics(home / "run/metrics.jsonl")[-1]["held_out_transitions"] == 148
    play = ["--max-episode-steps", "20"]
    small = ["--mpc.horizon", "1", "--mpc.particles", "2"]
    assert cli.main(["eval", "run", "--episodes", "2", *play, *small, "--no-video"]) == 0
    assert cli.main(["report", "run"]) == 0
    assert "normalised score" in (home / "run/report.md").read_text()
    (home / "few.yaml").write_text("near: {horizon: 1, particles: 2}\nnone: {horizon: 0}\n")
    assert cli.main(["tune", "run", "--candidates", "few.yaml", "--budget", "6", "--round", "2", *play]) == 0
    assert cli.main(["eval", "run", "--tuned", "--episodes", "2", *play, "--no-video"]) == 0
    assert cli.main(["report", "run", "--evaluation", "run/tuned", "--html"]) == 0


def test_arrays_of_a_task_are_scored_by_success():
    n = 20
    masks = np.ones(n)
    masks[5] = 0
    data = from_arrays(
        np.zeros((n, 2)), np.zeros((n, 2)), masks - 1, masks == 0, lengths=[n], env_id="pointmaze-medium-singletask-v0"
    )
    assert data.info.scored
