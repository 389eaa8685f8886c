"""`--log`: what trainings, evaluations, studies and deployments send."""

import csv
import json
import sys

import pytest

from jacrec import cli
from jacrec.commands.tracking import deployment_points, send_job
from jacrec.studies.job_graph import study_jobs
from jacrec.studies.spec import read_spec
from jacrec.training.loop import read_metrics
from tests.small_run import hardly_trained
from tests.study_folder import TASKS, fill, write_study


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_training_and_its_evaluation(tmp_path, monkeypatch):
    run = hardly_trained(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    train = ["train", "jacrec/hopper-random-v0", "--settings", str(run / "config.yaml"), "--out", str(run), "--log", "csv"]
    for more in ([], ["--extend", "--reward.updates", "6"]):  # all of a finished run, then more of it
        assert cli.main([*train, *more]) == 0
        lines = read_metrics(run / "metrics.jsonl")
        for stage in ("rebrac", "dynamics", "reward"):
            shown = table(run / f"tracking/train/csv/{stage}.csv")
            own = [line for line in lines if line["stage"] == stage]
            assert [int(row["step"]) for row in shown] == [line["update"] for line in own]
            assert [float(row["seconds"]) for row in shown] == [line["seconds"] for line in own]
    assert own[-1]["update"] == 6

    played = ["eval", str(run), "--episodes", "2", "--contestants", "base", "--no-video", "--log", "csv"]
    assert cli.main(played) == 0
    record = json.loads((run / "evaluation.json").read_text())["contestants"]["base"]
    shown = table(run / "tracking/eval/csv/base.csv")
    assert [float(row["return"]) for row in shown] == record["returns"]
    (mean,) = table(run / "tracking/eval/csv/mean-base.csv")
    assert float(mean["score"]) == pytest.approx(sum(record["scores"]) / 2)


def test_the_jobs_of_a_study(tmp_path):
    study = fill(write_study(tmp_path / "study", TASKS), lambda task, seed, name: 50.0)
    for job in study_jobs(read_spec(study / "study.yaml"), study):
        send_job(["csv"], study, job)
    cell = study / f"tracking/{TASKS[0]}/seed-10"
    assert [row["score"] for row in table(cell / "plays/mpc/csv/mpc.csv")] == ["50.0"] * 4
    assert [row["step"] for row in table(cell / "run/csv/dynamics.csv")] == ["20000", "40000", "60000"]


def test_a_deployment():
    decisions = {"median_ms": 1.0, "p99_ms": 2.0, "max_ms": 3.0}
    episode = {"return": 5.0, "score": None, "length": 9, "version": 1, "picked_up": [], "decisions": decisions}
    verdict = {"part": "reward", "before": 0.5, "after": 0.25, "accepted": True, "rmse": [1.0, 2.0], "offline": None}
    refreshes = [{"transitions": 60, "offline": False, "verdicts": [verdict], "version": 1}]
    first, second = deployment_points({"episodes": [episode], "refreshes": refreshes})
    assert (first.part, first.step, first.values["return"], first.values["p99_ms"]) == ("episodes", 0, 5.0, 2.0)
    assert (second.part, second.step, second.values["after"]) == ("refreshes/reward", 60, 0.25)
    assert (second.values["accepted"], second.values["rmse_after"]) == (True, 2.0)


def test_a_tracker_without_its_library_is_refused_before_anything_is_done(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.chdir(tmp_path)
    for verb in (["train", "nowhere.hdf5"], ["sweep", "smoke"]):
        assert cli.main([*verb, "--log", "trackio"]) == 2
        assert "pip install 'jacrec[trackio]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
