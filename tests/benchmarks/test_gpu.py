"""`make bench-gpu` rehearsed without a GPU: rows are written as measured, and failures of every kind end a row and no more."""

import json
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from jacrec.kernels import chain_adjoint, chain_forward, launch, rollout
from tests.benchmarks.mocked_gpu import mocked_gpu
from tests.benchmarks.scripts import FOLDER

SCRIPT = """
import os, sys, time
sys.path.insert(0, {folder!r})
import gpu_rows
from pathlib import Path

def fail(error): raise error
rows = [
    ("good", lambda: 1),
    ("wrong", lambda: fail(SystemExit("forward: expected an error near 1e-7, got 3e-1"))),
    ("crash", lambda: os._exit(139)),
    ("hang", lambda: time.sleep(60)),
    ("lost", lambda: fail(RuntimeError("CUDA error: an illegal memory access was encountered"))),
    ("unbuildable", lambda: fail(RuntimeError("PTXAS error"))),
    ("last", lambda: {{"ms": 2.0}}),
]
a = dict(zip(sys.argv[2::2], sys.argv[3::2]))
record = gpu_rows.Record(Path(a["--out"]) / (sys.argv[1] + ".jsonl"), {{"commit": "x"}}, a["--run"])
gpu_rows.LEAST_SECONDS = 0.05
sys.exit(gpu_rows.measure(rows, record, float(a["--seconds"]), 0.7))
"""


@pytest.fixture
def parts(load):
    return load("gpu_parts")


def test_failures_of_every_kind_end_their_row(load, tmp_path, monkeypatch, capfd):
    gpu = load("gpu")
    script = tmp_path / "rows.py"
    script.write_text(SCRIPT.format(folder=str(FOLDER)))
    monkeypatch.setattr(gpu, "ROWS", str(script))
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 0.1)
    part = gpu.rows_of("part", 30)
    assert gpu.run_part(part, 30, "--out", str(tmp_path), "--run", "1") == "some rows failed"
    found = gpu.collect(tmp_path, {}, "cpu")["parts"]["part"]
    assert found["results"] == {"good": 1, "last": {"ms": 2.0}}
    assert found["errors"].keys() == {"wrong", "crash", "hang", "lost", "unbuildable"}
    for row, words in {
        "wrong": "3e-1",
        "crash": "the process ended",
        "hang": "the process ended",
        "lost": "illegal memory",
    }.items():
        assert words in found["errors"][row]
    # again: what is measured is kept, what failed is tried once more
    before = (tmp_path / "part.jsonl").read_text()
    assert gpu.run_part(part, 30, "--out", str(tmp_path), "--run", "2") == "some rows failed"
    added = [json.loads(line) for line in (tmp_path / "part.jsonl").read_text()[len(before) :].splitlines()]
    assert {x["row"] for x in added} == found["errors"].keys()


def test_a_part_that_hangs_is_ended_with_its_children(load, tmp_path, monkeypatch):
    gpu = load("gpu")
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 0.1)
    alive = tmp_path / "alive"
    child = f"import time, pathlib; time.sleep(2); pathlib.Path({str(alive)!r}).touch()"
    command = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    assert gpu.run_part(gpu.Part("x", ("-c", command), 9), 0.8) == "stopped after 1 s"
    subprocess.run([sys.executable, "-c", "import time; time.sleep(2)"], check=True)
    assert not alive.exists()


def test_records_survive_half_lines_and_other_commits(load, tmp_path):
    rows = load("gpu_rows")
    path = tmp_path / "part.jsonl"
    record = rows.Record(path, {"commit": "a"}, "1")
    assert rows.measure([("x", lambda: 1)], record, 60) == rows.DONE
    with path.open("a") as file:
        file.write('{"row": "y", "resu')
    assert rows.Record(path, {"commit": "a"}, "2").results == {"x": 1}
    assert rows.Record(path, {"commit": "b"}, "3").results == {}
    assert rows.Record(path, {"commit": "a"}, "4").results == {}


def test_rows_without_time_are_not_begun(load, tmp_path):
    rows = load("gpu_rows")
    record = rows.Record(tmp_path / "part.jsonl", {}, "1")
    assert rows.measure([("x", lambda: 1 / 0)], record, 1.0) == rows.DONE
    assert record.lines(record.path)[-1] == {"row": "x", "run": "1", "skipped": "no time was left"}


def test_everything_fits_ten_minutes(load):
    gpu = load("gpu")
    assert sum(part.most_seconds for part in gpu.PARTS) + gpu.COLLECTING <= 570
    assert (gpu.PARTS[0].name, gpu.PARTS[0].most_seconds) == ("smoke", 30)


class Clock:
    """Time that passes as parts use it."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    def time_ns(self):
        return 7


@pytest.mark.parametrize("share", [0.2, 1.0, 3.0], ids=["quick", "slow", "much too slow"])
def test_slow_parts_keep_to_their_seconds_and_get_what_is_left(load, tmp_path, monkeypatch, share):
    """Every part would need this share of its seconds, the smoke test four times as much."""
    gpu, clock, given = load("gpu"), Clock(), []
    monkeypatch.setattr(gpu, "time", clock)
    needed = {part.name: part.most_seconds * (4 if part.name == "smoke" else share) for part in gpu.PARTS}

    def run_part(part, seconds, *options, rehearse):
        given.append((part.name, seconds))
        if seconds < gpu.LEAST_SECONDS:
            return "left out: no time was left"
        (tmp_path / f"{part.name}.jsonl").write_text('{"identity": {}}\n')
        clock.now += min(seconds, needed[part.name])
        needed[part.name] -= min(seconds, needed[part.name])
        return "done" if needed[part.name] == 0 else f"stopped after {seconds:.0f} s"

    monkeypatch.setattr(gpu, "run_part", run_part)
    outcomes = gpu.run_parts(gpu.PARTS, clock.now + 570 - gpu.COLLECTING, tmp_path)
    assert clock.now <= 100 + 570 - gpu.COLLECTING
    first, again = given[: len(gpu.PARTS)], given[len(gpu.PARTS) :]
    assert all(seconds <= part.most_seconds for (_, seconds), part in zip(first, gpu.PARTS, strict=True))
    assert outcomes.keys() == {part.name for part in gpu.PARTS}
    if share < 1:
        assert set(outcomes.values()) == {"done"}
        assert [name for name, _ in again] == ["smoke"]
    else:
        # the caps leave 25 s, which the first part that was cut short gets
        assert again == [("smoke", 570 - gpu.COLLECTING - sum(part.most_seconds for part in gpu.PARTS))]
        assert outcomes["smoke"].startswith("stopped")
        assert all(outcomes[name] == ("done" if share == 1 else f"stopped after {s:.0f} s") for name, s in first[1:])


SLOW = """
import sys, time
sys.path.insert(0, {folder!r})
import gpu_rows
from pathlib import Path

a = dict(zip(sys.argv[2::2], sys.argv[3::2]))
path = Path(a["--out"]) / (sys.argv[1] + ".jsonl")
record = gpu_rows.Record(path, {{}}, a["--run"])
gpu_rows.LEAST_SECONDS = 0.0
sys.exit(gpu_rows.measure([("quick", lambda: 1), ("slow", lambda: time.sleep(60))], record, 3600.0))
"""


def test_a_slow_row_costs_its_part_its_seconds_and_no_more(load, tmp_path, monkeypatch):
    gpu = load("gpu")
    script = tmp_path / "rows.py"
    script.write_text(SLOW.format(folder=str(FOLDER)))
    monkeypatch.setattr(gpu, "ROWS", str(script))
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 1.0)
    begun = time.monotonic()
    outcomes = gpu.run_parts([gpu.rows_of(name, 3) for name in ("smoke", "kernels", "tests")], begun + 6.5, tmp_path)
    assert time.monotonic() - begun < 10
    slow = "stopped after 3 s"
    assert outcomes == {"smoke": slow, "kernels": slow, "tests": "left out: no time was left"}
    # what was measured before is kept
    found = gpu.collect(tmp_path, {}, "cpu")["parts"]
    assert {name: part["results"] for name, part in found.items()} == {"smoke": {"quick": 1}, "kernels": {"quick": 1}}


def test_rows_of_a_gpu_are_named_apart(parts):
    for name, rows_of in parts.PARTS.items():
        names = [row for row, _ in rows_of(parts.FULL)]
        assert len(set(names)) == len(names) > 0, name


def fail_first(result):
    """A measurement that fails the first time."""
    calls = []

    def measured(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 1:
            raise RuntimeError("rollout_kernel: OutOfResources")
        return result

    return measured


PARTS = ("smoke", "tests", "gradients", "kernels", "decisions", "memory", "tiles", "training")


def test_all_parts_are_rehearsed(load, parts):
    assert set(PARTS) == parts.PARTS.keys() == {part.name for part in load("gpu").PARTS}


@pytest.mark.parametrize("name", PARTS)
def test_an_injected_failure_costs_every_part_one_row(load, parts, tmp_path, monkeypatch, name):
    rows = load("gpu_rows")
    done = SimpleNamespace(returncode=0, stdout="3 passed in 1 s", stderr="")
    places = {
        "smoke": ((parts, "against_twin"), {}),
        "tests": ((parts.subprocess, "run"), done),
        "gradients": ((parts.grad_speed, "measure_size"), {}),
        "kernels": ((parts.kernel_chain, "measure_chain"), []),
        "decisions": ((parts.decision_speed, "decisions"), {}),
        "memory": ((parts.memory, "measure"), {}),
        "tiles": (
            (parts.kernel_chain, "chain_work"),
            [SimpleNamespace(kernel=k, call=lambda *_, **__: ()) for k in ("chain_forward", "chain_adjoint")],
        ),
        "training": ((load("training_speed"), "measure"), []),
    }
    (place, attribute), result = places[name]
    monkeypatch.setattr(place, attribute, fail_first(result))
    scale = parts.REHEARSAL
    if name == "tests":
        scale = parts.replace(scale, tests=("a.py -k x", "b.py -k x"))
    asked = parts.PARTS[name](scale)
    record = rows.Record(tmp_path / f"{name}.jsonl", {}, "1")
    assert rows.measure(asked, record, 300) == rows.FAILED
    assert len(record.failed) == 1
    assert len(record.results) == len(asked) - 1 > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_every_part_runs_on_a_mocked_gpu(load, parts, tmp_path, monkeypatch, name):
    """What only a GPU would run, too: compiling side by side, recordings, every precision, tuning, peak memory."""
    rows = load("gpu_rows")
    scale = parts.replace(parts.REHEARSAL, device="cuda", smoke=(2,), particles=(1,))
    scale = parts.replace(scale, contestants=("torch autograd", "adjoint fused", "auto"))
    monkeypatch.setattr(parts.grad_speed, "CHEAP", ())
    # its products are of a GPU's size
    monkeypatch.setattr(
        parts, "rates", lambda *_: parts.floor.Rates(1e12, 1e12, 1e12, parts.floor.dependent_kernel(8, torch.float32))
    )
    # once: interpreted kernels take seconds
    monkeypatch.setattr(
        parts.kernel_chain, "timed", lambda calls, *_, **__: {x: {"median": 1.0 + len(calls[x]())} for x in calls}
    )
    monkeypatch.setattr(parts.kernel_speed, "PRECISIONS", {"cuda": ["tf32x3", "ieee"]})
    monkeypatch.setattr(launch, "tune", partial(launch.tune, repetitions=1))
    for constant, value in {"STEPS": (1,), "M": 3, "H": 1}.items():
        monkeypatch.setattr(parts.memory, constant, value)
    for changed in ("FULL", "REHEARSAL"):
        monkeypatch.setattr(parts, changed, scale)
    record = rows.Record(tmp_path / f"{name}.jsonl", {}, "1")
    with mocked_gpu() as seen:
        asked = parts.PARTS[name](scale)
        if name == "tiles":
            asked = asked[:4]
        status = rows.measure(asked, record, 300)
    assert status == rows.DONE, [line for line in record.lines(record.path) if "error" in line]
    assert all(row in record.results for row, _ in asked)
    if name in ("smoke", "gradients", "kernels"):
        assert record.results["compile"]["compiled"] > 0
    if name in ("smoke", "gradients", "decisions"):
        assert seen.recorded > 0
        assert seen.replayed > 0
    if name in ("smoke", "decisions", "training"):
        # other threads allocate, and pin memory, while this one records
        assert seen.modes == {"thread_local"}
    if name == "decisions":
        assert [row["N"] for row in record.results.values()] == [None, None, scale.lockstep]
        assert all(row["ms"]["decisions"] >= 10 for row in record.results.values())
    if name == "training":
        for batch in scale.batches:
            names = {row["name"] for row in record.results[f"batch {batch}"]["rows"]}
            assert {"CUDA graphs", "by hand", "autograd, fused Adam", "reward model", "diffusion model"} <= names
    if name == "tests":
        assert list(record.results.values()) == [{"passed": 1, "deselected": 13}]


def test_a_rehearsal_runs_every_kernel(load, parts, tmp_path, monkeypatch):
    """The smoke test itself, interpreted: forms, particles and precisions against their twins."""
    rows, launched = load("gpu_rows"), set()

    def start(kernel, cut, *arguments, **named):
        launched.add((kernel.__name__, arguments[0].dtype))
        return launch.start(kernel, cut, *arguments, **named)

    for module in (chain_forward, chain_adjoint, rollout):
        monkeypatch.setattr(module, "start", start)
    record = rows.Record(tmp_path / "smoke.jsonl", {}, "1")
    assert rows.measure(parts.smoke(parts.REHEARSAL), record, 300) == rows.DONE
    assert {"rollout M 1", "forward M 3", "recompute M 1", "adjoint float64 M 3", "dot float64"} <= record.results.keys()
    assert all(row["error"] < 1e-2 for name, row in record.results.items() if " M " in name)
    kernels = {"rollout_kernel", "chain_forward_kernel", "chain_record_kernel", "chain_adjoint_kernel"}
    assert {name for name, dtype in launched if dtype == torch.float32} == kernels
