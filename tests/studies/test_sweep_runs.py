"""Sweeps that train and play: bit-identical after a kill, with processes and with Ray; failures and adopted runs."""

import contextlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from jacrec.cli import main
from jacrec.data.behaviour.make import make_dataset
from jacrec.studies.executors import Failed, Finished, Progress
from jacrec.studies.job_graph import study_jobs
from jacrec.studies.jobs import Job
from jacrec.studies.ledger import locked
from jacrec.studies.spec import find_spec, read_spec
from jacrec.studies.sweep import plan
from jacrec.studies.workers import LocalExecutor
from jacrec.training.run import train
from tests.training.test_run import restore_sigint

JOBS = 24
TIMES = {"seconds", "wall_seconds", "decisions_per_second"}
has_ray = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not has_ray, reason="ray is not installed: pip install 'jacrec[cluster]'")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the data of the smoke study."""
    root = tmp_path_factory.mktemp("sweeps")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root / "data"))
        for env in ("hopper", "Walker2d-v4"):
            make_dataset(env, "random", steps=1000)
    return root


def start(place: Path, *args: str) -> subprocess.Popen:
    """Start `jacrec sweep` in its own process group, so that it can be killed."""
    env = os.environ | {"MINARI_DATASETS_PATH": str(place / "data"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "jacrec", "sweep", *args],
        cwd=place,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=restore_sigint,
    )


def run(place: Path, *args: str, expect: int = 0) -> tuple[str, str]:
    """Output of a sweep in this process, which has everything imported already."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.chdir(place),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setenv("MINARI_DATASETS_PATH", str(place / "data"))
        code = main(["sweep", *args])
    assert code == expect, out.getvalue() + err.getvalue()
    return out.getvalue(), err.getvalue()


def run_process(place: Path, *args: str, expect: int = 0) -> tuple[str, str]:
    """As `run`, in a subprocess."""
    process = start(place, *args)
    out, err = process.communicate(timeout=300)
    assert process.returncode == expect, out + err
    return out, err


def log(folder: Path) -> list[dict]:
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def wait_for_jobs(process: subprocess.Popen, folder: Path, jobs: int) -> None:
    """Wait until this many jobs have ended."""
    end = time.monotonic() + 120
    while len(log(folder)) < jobs:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def living(group: int) -> list[str]:
    """The running processes of a group, without zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = path.read_text().rpartition(")")
            state, _, pgrp, *_ = rest.split()
            if int(pgrp) == group and state != "Z":
                found.append(name)
    return found


def plays(folder: Path) -> dict[str, dict]:
    """All records of plays, without durations."""
    records = {str(p.relative_to(folder)): json.loads(p.read_text()) for p in sorted(folder.glob("cells/*/*/plays/*.json"))}
    return {name: {k: v for k, v in record.items() if k not in TIMES} for name, record in records.items()}


@pytest.fixture(scope="module")
def uninterrupted(place):
    """The smoke study, swept without interruption."""
    out, _ = run(place, "smoke", "--workers", "2", "--log", "csv")
    assert "[24/24]" in out
    assert "next: jacrec report studies/smoke" in out
    return place / "studies" / "smoke"


@pytest.mark.slow
def test_contents_of_records(uninterrupted):
    records = plays(uninterrupted)
    assert len(records) == 16
    record = records["cells/walker2d-random/seed-1/plays/mpc-deterministic.json"]
    assert (record["task"], record["seed"], record["contestant"], record["model"]) == (
        "walker2d-random",
        1,
        "mpc-deterministic",
        "deterministic",
    )
    assert record["settings"]["episodes"] == 3
    assert record["seeds"] == [7000, 7001, 7002]
    assert len(record["returns"]) == len(record["scores"]) == len(record["lengths"]) == len(record["terminated"]) == 3
    assert record["scores"][0] == pytest.approx(100 * (record["returns"][0] - 1.629008) / (4592.3 - 1.629008))
    assert (record["controller"]["horizon"], record["controller"]["lr"]) == (2, 1e-4)
    assert record["thinking"]["updates"] == record["decisions"] == sum(record["lengths"])
    assert record["environment"]["id"] == "Walker2d-v4"
    base = records["cells/walker2d-random/seed-1/plays/base.json"]
    assert (base["controller"], base["thinking"], base["model"]) == (None, None, "default")
    assert base["seeds"] == record["seeds"]
    assert base["networks"]["dynamics"] != record["networks"]["dynamics"]
    assert {k: v for k, v in base["networks"].items() if k != "dynamics"} == {
        k: v for k, v in record["networks"].items() if k != "dynamics"
    }
    tracked = uninterrupted / "tracking/walker2d-random/seed-1/plays/mpc-deterministic/csv"
    shown = [line.split(",")[1] for line in (tracked / "mpc-deterministic.csv").read_text().splitlines()]
    assert shown == ["return", *map(str, record["returns"])]
    assert len(list(uninterrupted.glob("tracking/*/*/*/csv/dynamics.csv"))) == 4
    assert {line["outcome"] for line in log(uninterrupted)} == {"finished"}
    assert len({line["worker"] for line in log(uninterrupted)}) == 2


@pytest.mark.slow
def test_finished_studies_are_not_repeated_and_can_be_extended(uninterrupted, place):
    before = {p: p.stat().st_mtime_ns for p in uninterrupted.glob("cells/**/*") if p.is_file()}
    out, _ = run(place, "studies/smoke")
    assert "24 of 24 jobs are done" in out
    content = yaml.safe_load(find_spec("smoke").read_text())
    content["contestants"]["more"] = {"horizon": 0, "lr": 1e-3}
    (place / "more.yaml").write_text(yaml.safe_dump(content))
    assert "28 jobs" in run(place, "more.yaml", "--dry-run")[0]
    content["evaluation"]["seed"] = 8
    (place / "other.yaml").write_text(yaml.safe_dump(content))
    assert "evaluation.seed = 7 there, 8 here" in run(place, "other.yaml", expect=2)[1]
    assert {p: p.stat().st_mtime_ns for p in uninterrupted.glob("cells/**/*") if p.is_file()} == before


def kill_and_resume(place: Path, uninterrupted: Path, out: str, *how: str) -> None:
    """Kill a sweep, resume it, and compare it with the uninterrupted one."""
    folder = place / out
    process = start(place, "smoke", "--out", out, *how)
    wait_for_jobs(process, folder, 3)
    process.kill()  # only the sweep: its workers have to notice
    process.communicate()
    assert 3 <= len(log(folder)) < JOBS
    (run_process if "--ray" in how else run)(place, "smoke", "--out", out, *how)
    finished = [line["job"] for line in log(folder) if line["outcome"] == "finished"]
    assert len(set(finished)) == len(finished)  # no job was repeated
    assert plays(folder) == plays(uninterrupted)
    assert not list(folder.rglob("*.failed.json"))


@pytest.mark.slow
def test_killed_sweep_is_resumed_bit_identically(place, uninterrupted):
    kill_and_resume(place, uninterrupted, "killed", "--workers", "2")


@pytest.mark.slow
@needs_ray
def test_killed_ray_sweep_is_resumed_bit_identically(place, uninterrupted):
    kill_and_resume(place, uninterrupted, "on-ray", "--ray", "--workers", "2")


@pytest.mark.slow
@needs_ray
def test_missing_cluster(place):
    _, err = run_process(place, "smoke", "--out", "nowhere", "--ray-address", "127.0.0.1:1", expect=2)
    assert "--ray-address 127.0.0.1:1:" in err


@pytest.mark.slow
def test_ctrl_c_stops_the_workers(place, uninterrupted):
    process = start(place, "smoke", "--out", "interrupted", "--workers", "2")
    wait_for_jobs(process, place / "interrupted", 2)
    os.killpg(process.pid, signal.SIGINT)  # as from a terminal: workers receive it too
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "to resume: jacrec sweep smoke --out interrupted --workers 2" in err
    assert "Traceback" not in err
    time.sleep(1.0)
    assert living(process.pid) == []
    run(place, "smoke", "--out", "interrupted", "--only", "*/seed-0")
    ours, theirs = plays(place / "interrupted"), plays(uninterrupted)
    assert ours == {name: theirs[name] for name in ours}
    assert len(ours) >= 8


@pytest.mark.slow
def test_failed_jobs_are_reported_and_retried(place):
    """One task's file is invalid, another task has the wrong environment."""
    content = yaml.safe_load(find_spec("smoke").read_text())
    content |= {"name": "failing", "seeds": [0], "models": {}, "contestants": {}, "data_root": "files"}
    hopper = content["tasks"]["hopper-random"]
    content["tasks"] = {"broken": {"data": "broken.hdf5"}, "wrong": {**hopper, "env_id": "HalfCheetah-v4"}, "good": hopper}
    (place / "failing.yaml").write_text(yaml.safe_dump(content))
    (place / "files").mkdir()
    (place / "files" / "broken.hdf5").write_bytes(b"nothing")
    for attempts in (2, 4):
        out, _ = run(place, "failing.yaml", "--workers", "1", expect=1)
        assert "2 jobs failed, 2 depend on them" in out
        folder = place / "studies" / "failing" / "cells"
        failure = json.loads((folder / "broken/seed-0/run.failed.json").read_text())
        assert failure["attempts"] == attempts
        assert "expected an HDF5 file" in failure["error"]
        assert "Traceback" in failure["traceback"]
        assert "HalfCheetah-v4" in json.loads((folder / "wrong/seed-0/run.failed.json").read_text())["error"]
        assert (folder / "good/seed-0/plays/base.json").is_file()
        assert "waiting for broken/seed-0/run" in " ".join(out.split())
    status, _ = run(place, "studies/failing", "--status")
    assert "2 failed" in status


@pytest.mark.slow
def test_existing_runs_are_adopted(place, uninterrupted, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(place / "data"))
    study, folder = read_spec(find_spec("smoke")), place / "adopting"
    config = replace(study.train_config("hopper-random", 0), data="jacrec/hopper-random-v0")
    finished = train(replace(config, threads=None, log_every=100), folder / "cells/hopper-random/seed-0/run", quiet=True)
    unfinished = folder / "cells/hopper-random/seed-1/run"
    train(replace(config, seed=1, log_every=100), unfinished, stages=["rebrac"], quiet=True)
    assert plan(study, folder).done == {"hopper-random/seed-0/run"}
    before = (finished / "metrics.jsonl").read_bytes()
    run(place, "smoke", "--out", "adopting", "--only", "hopper-random/*/plays/base")
    assert (finished / "metrics.jsonl").read_bytes() == before
    ours, theirs = plays(folder), plays(uninterrupted)
    assert ours == {name: theirs[name] for name in ours}
    assert len(ours) == 2
    train(replace(config, seed=2), folder / "cells/hopper-random/seed-2/run", quiet=True)
    wrong = replace(
        study,
        seeds=(2,),
        tasks={
            "hopper-random": replace(
                study.tasks["hopper-random"], training=replace(config, rebrac=replace(config.rebrac, updates=9))
            )
        },
    )
    with pytest.raises(ValueError, match=r"rebrac\.updates = 200 .*9"):
        plan(wrong, folder)


@dataclass(frozen=True)
class Action(Job):
    """A job that crashes, is killed, raises, sleeps or succeeds."""

    what: str

    def perform(self, report):
        if self.what == "sleep":
            try:
                report(0.5)  # can be interrupted from here on
                time.sleep(60)
            finally:
                (self.folder / "saved").write_text("checkpoint")
        report(0.5)
        if self.what == "crash":
            os._exit(3)
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "raise":
            raise LookupError("nothing there")
        return f"by {os.getpid()}"


def action(folder: Path, what: str) -> Action:
    return Action(what, "play", "t", 0, folder, (), 1, what)


def last_message(executor: LocalExecutor) -> Finished | Failed:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for message in executor.wait(1.0):
            if not isinstance(message, Progress):
                return message
    raise AssertionError("no message in a minute")


def test_a_dying_worker_only_fails_its_job(tmp_path):
    executor = LocalExecutor(1, tmp_path / "lock")
    try:
        for what, message in (("crash", "exit code 3"), ("kill", "killed by SIGKILL"), ("raise", "LookupError: nothing there")):
            executor.submit(action(tmp_path, what))
            failed = last_message(executor)
            assert isinstance(failed, Failed)
            assert message in failed.error
        executor.submit(action(tmp_path, "answer"))
        first = last_message(executor)
        executor.submit(action(tmp_path, "answer"))
        second = last_message(executor)
        assert isinstance(first, Finished)
        assert isinstance(second, Finished)
        assert first.note == second.note  # one process performs several jobs
    finally:
        executor.close()


def test_interrupted_workers_save_and_release_the_lock(tmp_path):
    executor = LocalExecutor(2, tmp_path / ".workers.lock")
    executor.submit(action(tmp_path, "sleep"))
    assert isinstance(executor.wait(60.0)[0], Progress)
    began = time.monotonic()
    executor.close()
    assert time.monotonic() - began < 15
    assert (tmp_path / "saved").is_file()
    with locked(tmp_path):
        pass


def test_repeatedly_dying_workers_stop_the_sweep(tmp_path):
    executor = LocalExecutor(1, tmp_path / "no folder" / "lock")  # cannot be opened

    def work():
        for _ in range(20):
            executor.submit(action(tmp_path, "answer"))
            last_message(executor)

    try:
        with pytest.raises(ChildProcessError, match=r"workers: .*died"):
            work()
    finally:
        executor.close()


def test_jobs_can_be_pickled(tmp_path):
    """Jobs are sent to other processes and machines."""
    import pickle

    for job in study_jobs(read_spec(find_spec("smoke")), tmp_path):
        assert pickle.loads(pickle.dumps(job)) == job
