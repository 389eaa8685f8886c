"""The gradient benchmark: agreement before timing, timing itself, goals, and the tables of docs/results.md."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests import ROOT
from tests.benchmarks.scripts import TINY, run


def test_gradients_agree_and_results_are_complete(tmp_path, load):
    path, plot = tmp_path / "results.json", tmp_path / "plot.png"
    done = run("benchmarks/grad_speed.py", *TINY, "--horizon", "1", "--repetitions", "1", "--json", str(path))
    assert done.returncode == 0, done.stderr
    assert "All gradients agree" in done.stdout
    assert plot.exists() or path.with_suffix(".png").exists()
    result = json.loads(path.read_text())
    assert {"machine", "cores", "threads", "python", "torch", "numba", "triton", "jax", "commit", "command", "date"} <= set(
        result["environment"]
    )
    (row,) = result["rows"]
    contestants = load("peers").CONTESTANTS
    expected = {name for name, c in contestants.items() if "cpu" in c.default_on}
    assert set(row["ms"]) | set(row["absent"]) == expected
    assert {"torch autograd", "torch checkpoint", "torch.func jacfwd", "forward", "adjoint", "auto"} <= set(row["ms"])
    assert all(row["absent"].values())
    for name, ms in row["ms"].items():
        assert 0 < ms["p20"] <= ms["median"] <= ms["p80"]
        assert row["float64_error"][name] < 1e-10
        assert row["error"][name] < 1e-4
        assert row["peak_bytes"][name] > 0
    assert row["floor"]["ms"] == max(row["floor"][x] for x in ("arithmetic", "bytes", "latency")) > 0
    assert set(row["phases"]["adjoint"]) == set(load("phases").PHASES)
    assert {"task", "d", "m", "M", "H", "K", "width", "dtype", "count", "rates", "chosen"} <= set(row)
    assert {"ready_seconds", "others"} <= set(row)


@pytest.mark.parametrize(
    ("model", "absent"),
    [
        ("ensemble", {"jax scan", "forward fused"}),
        (
            "multistep",
            {
                "jax scan",
                "forward fused",
                "adjoint fused",
                "torch checkpoint",
                "torch.func jacfwd",
                "forward",
                "adjoint",
                "adjoint recomputed",
            },
        ),
    ],
)
def test_contestants_for_world_models_without_a_chain(load, model, absent):
    speed, contestants = load("grad_speed"), load("peers").CONTESTANTS
    names = [name for name, c in contestants.items() if "cpu" in c.default_on]
    (row,) = speed.measure([load("problems").Size("hopper", 3, 2, 1, 8, model)], names, repetitions=1, budget=0.01)
    assert set(row["absent"]) == absent
    assert set(row["ms"]) == set(names) - absent
    assert row["difference"] < 1e-10


def test_wrong_gradients_are_not_timed(load, monkeypatch):
    peers, speed, problems = load("peers"), load("grad_speed"), load("problems")
    right = peers.CONTESTANTS["torch autograd"]

    def doubled(case):
        entry = right.prepare(case)
        return problems.Entry(entry.gradient, lambda answer: {k: 2 * g for k, g in answer.gradient.items()})

    monkeypatch.setitem(peers.CONTESTANTS, "doubled", peers.Contestant("doubled", "", doubled))
    monkeypatch.setattr(speed, "timed", lambda *args, **options: pytest.fail("timed"))
    with pytest.raises(SystemExit, match=r"doubled .*1\.0e\+00 in float64"):
        speed.measure([problems.Size("hopper", 2, 1, 2, 16)], ["forward", "doubled"])


def test_contestants_without_float64_are_compared_in_float32(load, monkeypatch):
    peers, speed, problems = load("peers"), load("grad_speed"), load("problems")
    right = peers.CONTESTANTS["torch autograd"]

    def rounded(case):
        if case.state.dtype == torch.float64:
            raise problems.Unavailable("float32 only")
        entry = right.prepare(case)
        return problems.Entry(entry.gradient, lambda a: {k: g.bfloat16().float() for k, g in a.gradient.items()})

    monkeypatch.setitem(peers.CONTESTANTS, "rounded", peers.Contestant("rounded", "", rounded))
    with pytest.raises(SystemExit, match=r"rounded has an error of .*, reverse mode"):
        speed.measure([problems.Size("hopper", 2, 1, 2, 16)], ["rounded"])


def test_number_of_timed_calls(load):
    timed = load("harness").timed
    calls = {"quick": 0, "slow": 0}

    def quick():
        calls["quick"] += 1

    def slow():
        calls["slow"] += 1
        time.sleep(0.02)

    ms = timed({"quick": quick, "slow": slow}, 9, turns=3, settle=1, budget=0.06)
    assert calls == {"quick": 2 + 3 * (1 + 3), "slow": 2 + 3}
    assert ms["slow"]["median"] >= 20 > ms["quick"]["median"] >= 0
    calls["quick"] = 0
    timed({"quick": quick}, 4)
    assert calls["quick"] == 2 + 4


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="load of other processes is not known on this system")
def test_load_of_other_processes_is_measured(load):
    others = load("harness").Others()
    worker = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(1.0)
    finally:
        worker.kill()
        worker.wait()
    assert 0.5 / os.cpu_count() < others.share() <= 1.1


def test_only_standard_options_are_recorded(load):
    as_usual = load("harness").as_usual
    parser = argparse.ArgumentParser()
    for option in ("--json", "--full", "--threads"):
        parser.add_argument(option)
    assert as_usual(parser, parser.parse_args([]))
    assert as_usual(parser, parser.parse_args(["--json", "x"]))
    assert not as_usual(parser, parser.parse_args(["--full", "x"]))
    assert as_usual(parser, parser.parse_args(["--full", "x"]), "full")
    assert not as_usual(parser, parser.parse_args(["--threads", "1"]), "full")


def test_goals_of_gradients(load):
    goals = load("goals")
    ms = {name: {"median": x} for name, x in {"torch autograd": 60.0, "jax scan": 12.0, "adjoint": 4.0, "auto": 5.0}.items()}
    peak = {"torch autograd": 900, "jax scan": None, "adjoint": 20, "auto": 10}
    row = dict(task="hopper", M=16, H=5, K=10, ms=ms, peak_bytes=peak, floor={"ms": 2.0})
    jax, autograd = goals.evaluate([row, {**row, "M": 2}], "cpu")
    assert (jax["least"], jax["least_of_the_fastest"], jax["sizes"]) == (2.4, 3.0, 1)
    assert ": reached; Auto 2.40× (at hopper M 16 H 5)" in goals.sentence(jax)
    assert autograd["least"] == 12.0
    least = {g["what"]: g["least"] for g in goals.evaluate([{**row, "K": 20}, {**row, "M": 4096}], "cuda")}
    assert least["the share of the floor"] == 0.4
    assert least["less memory than torch autograd"] == 90.0
    without = {**row, "ms": {"auto": {"median": 1.0}}}
    assert goals.evaluate([without], "cpu") == []


def result_of(machine, auto, **more):
    """Contents of a results file, its rows with `more`."""
    ms = {"torch autograd": 20.0, "jax scan": 6.0, "adjoint": 14.0, "auto": auto}
    return {
        "environment": dict(
            machine=machine,
            threads=2,
            torch="2.13.0",
            numba="0.68.1",
            triton="absent",
            jax="0.10.2",
            commit="abc",
            date="2026-11-21",
        ),
        "rows": [
            dict(
                task="hopper",
                model="diffusion",
                M=M,
                H=3,
                K=10,
                width=256,
                dtype="float32",
                floor={"ms": 1.0},
                ms={name: {"median": M * x} for name, x in ms.items()},
                **more,
            )
            for M in (1, 2)
        ],
    }


def test_tables_of_all_machines(tmp_path, load):
    table = load("table")
    # a floor by the rate of the library's products, and one by the peak
    peak = {"rates": {"flops": 4e12, "products": 2e12}, "count": {"multiply_adds": 3 * 10**9}}
    for name, machine, auto, more in (
        ("cuda_h200", "H200", 2.0, {}),
        ("cpu_epyc", "EPYC", 3.0, peak),
        ("cpu_old", "Old", 0.8, {}),
    ):
        (tmp_path / f"grad_speed_{name}.json").write_text(json.dumps(result_of(machine, auto, **more)))
    (tmp_path / "grad_speed_cpu.json").write_text("older format, ignored")
    text = table.tables(tmp_path)
    assert text.index("EPYC, 2 threads, torch 2.13.0, numba 0.68.1, jax 0.10.2; commit abc") < text.index("H200")
    assert "| hopper, H = 3, M = 1 | 20.00 | 6.00 | 14.00 | 3.00 | 2.00× | 3.00 | 33% |" in text
    assert "| hopper, H = 3, M = 2 | 40.00 | 12.00 | 28.00 | 4.00 | 3.00× | 0.25× |" in text
    assert "| hopper, H = 3, M = 1 | 20.00 | 6.00 | 14.00 | 0.80 | 7.50× | 1.25× |" in text
    assert text.count("share of the floor") == 1
    assert "Forward" not in text


def test_table_replaces_the_text_between_the_markers(load):
    replaced = load("table").replaced
    page = "before\n<!-- grad_speed -->\nold \\1\n<!-- /grad_speed -->\nafter\n"
    assert replaced(page, "| new \\1 |\n") == "before\n<!-- grad_speed -->\n| new \\1 |\n<!-- /grad_speed -->\nafter\n"
    with pytest.raises(ValueError, match=r"grad_speed.*got none"):
        replaced("no markers", "")


def test_results_page_has_the_current_table(load):
    table = load("table")
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    if "<!-- grad_speed -->" not in page:
        pytest.skip("docs/results.md has no <!-- grad_speed --> markers")
    assert table.replaced(page, table.tables()) == page, "run: python benchmarks/table.py --write docs/results.md"


def test_checkout_works_without_installation():
    program = "import sys, jacrec.kernels.cpu; print(jacrec.kernels.__path__[0])"
    # -S disables installed packages; site-packages are added as a plain path, for torch and numpy
    packages = [p for p in sys.path if p.endswith("site-packages")]
    path = os.pathsep.join([str(ROOT), *packages])
    done = run("-S", "-c", program, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == ROOT / "kernels"
