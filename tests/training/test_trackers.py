"""Trackers: points are sent once, files are written anew from the record, services are continued."""

import csv
import json
import sys
import threading
import types

import pytest

from jacrec.training import trackers
from jacrec.training.trackers import Point, Tracking, expect_usable

POINTS = [
    Point("rebrac", 10, {"loss": 1.5, "seconds": 2, "note": "no number", "score": None}),
    Point("dynamics", 10, {"rmse": 0.25}),
    Point("rebrac", 20, {"loss": 0.5, "seconds": 4, "eval_return": 7.0}),
    Point("rebrac", 30, {"loss": 0.25, "seconds": 6}),
]


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_csv_has_a_file_per_part_and_a_column_per_number(tmp_path):
    with Tracking(["csv"], tmp_path, "train") as tracking:
        tracking.send(POINTS[:1])
        assert table(tmp_path / "tracking/train/csv/rebrac.csv") == [{"step": "10", "loss": "1.5", "seconds": "2.0"}]
        tracking.send(POINTS)  # the first one again
    first, second, third = table(tmp_path / "tracking/train/csv/rebrac.csv")
    assert first == {"step": "10", "loss": "1.5", "seconds": "2.0", "eval_return": ""}
    assert (second["eval_return"], third["loss"], third["eval_return"]) == ("7.0", "0.25", "")
    assert table(tmp_path / "tracking/train/csv/dynamics.csv") == [{"step": "10", "rmse": "0.25"}]
    with Tracking(["csv"], tmp_path, "train") as tracking:  # another process, whose record has one part
        tracking.send(POINTS[:1])
    assert [path.name for path in (tmp_path / "tracking/train/csv").iterdir()] == ["rebrac.csv"]
    assert len(table(tmp_path / "tracking/train/csv/rebrac.csv")) == 1


def test_points_from_several_threads_are_all_written(tmp_path):
    with Tracking(["csv"], tmp_path, "train") as tracking:
        names = [f"part-{i}" for i in range(4)]
        own = [[Point(name, step, {"x": step}) for step in range(20)] for name in names]
        threads = [threading.Thread(target=tracking.send, args=(points,)) for points in own]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [len(table(tmp_path / f"tracking/train/csv/{name}.csv")) for name in names] == [20] * 4


def test_nothing_is_written_without_points_or_trackers(tmp_path):
    with Tracking(["csv"], tmp_path, "train"):
        pass
    with Tracking([], tmp_path, "train") as tracking:
        tracking.send(POINTS)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_shows_every_scalar(tmp_path):
    reason = "needs tensorboard, pip install 'jacrec[tensorboard]'"
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=reason)
    for _ in range(2):  # a second process replaces what the first has written
        with Tracking(["tensorboard"], tmp_path, "train") as tracking:
            tracking.send(POINTS)
    assert len(list((tmp_path / "tracking/train").iterdir())) == 1
    found = events.EventAccumulator(str(tmp_path / "tracking/train"))
    found.Reload()
    assert sorted(found.Tags()["scalars"]) == ["dynamics/rmse", "rebrac/eval_return", "rebrac/loss", "rebrac/seconds"]
    assert [(x.step, x.value) for x in found.Scalars("rebrac/loss")] == [(10, 1.5), (20, 0.5), (30, 0.25)]


class FakeRun:
    """Stands for a run of wandb or trackio."""

    def __init__(self, **options):
        self.options, self.logged, self.finished = options, [], False

    def define_metric(self, name, step_metric):
        self.logged.append((name, step_metric))

    def log(self, values, step=None):
        self.logged.append((values, step))

    def finish(self):
        self.finished = True


@pytest.fixture
def service(monkeypatch):
    """A module with the interface that wandb and trackio have in common; the runs that were opened."""
    runs = []
    module = types.ModuleType("service")
    module.api = types.SimpleNamespace(api_key=None)
    module.Settings = dict
    module.init = lambda **options: runs.append(FakeRun(**options)) or runs[-1]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setitem(sys.modules, "trackio", module)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return runs


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_a_service_continues_its_run(tmp_path, service, kind):
    for points in (POINTS[:2], POINTS, POINTS):
        with Tracking([kind], tmp_path / "run", "train") as tracking:
            tracking.send(points)
    first, second = service  # the third had nothing new
    assert first.finished
    assert second.finished
    same = "id" if kind == "wandb" else "name"
    assert first.options[same] == second.options[same]
    assert first.options["resume"] == "allow"
    sent = [values for values, _ in first.logged + second.logged if isinstance(values, dict)]
    assert [values["rebrac/loss"] for values in sent if "rebrac/loss" in values] == [1.5, 0.5, 0.25]
    if kind == "wandb":
        assert sent[0] == {"rebrac/loss": 1.5, "rebrac/seconds": 2.0, "rebrac/step": 10}
        assert ("rebrac/*", "rebrac/step") in first.logged
    else:
        assert ({"dynamics/rmse": 0.25}, 10) in first.logged
    assert json.loads((tmp_path / f"run/tracking/train/{kind}/run.json").read_text())["steps"] == {"rebrac": 30, "dynamics": 10}
    with Tracking([kind], tmp_path / "run", "train", again=True) as tracking:
        tracking.send(POINTS)
    assert service[-1].options[same] != first.options[same]


def test_weights_and_biases_without_a_login(service, monkeypatch):
    expect_usable("wandb")
    monkeypatch.delenv("WANDB_MODE")
    with pytest.raises(ValueError, match=r"--log wandb: expected a login, got none.*WANDB_MODE=offline"):
        expect_usable("wandb")


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "trackio"])
def test_a_missing_library_is_named_with_its_extra(monkeypatch, kind):
    monkeypatch.setitem(sys.modules, trackers.MODULES[kind], None)
    with pytest.raises(ValueError, match=rf"--log {kind}: expected .* got .*pip install 'jacrec\[{kind}\]'"):
        Tracking([kind], "nowhere", "train")


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="needs wandb, pip install 'jacrec[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for _ in range(2):
        with Tracking(["wandb"], tmp_path / "run", "train") as tracking:
            tracking.send(POINTS)
    assert wandb.run is None
    (folder,) = (tmp_path / "run/tracking/train/wandb/wandb").glob("offline-run-*")
    assert list(folder.glob("*.wandb"))


def test_trackio_keeps_its_runs_locally(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read as it is imported
    pytest.importorskip("trackio", reason="needs trackio, pip install 'jacrec[trackio]'")
    with Tracking(["trackio"], tmp_path / "run", "train") as tracking:
        tracking.send(POINTS)
    assert any((tmp_path / "trackio").rglob("*.db"))
