"""The benchmarks compare before they time and count what they say; the table in docs/results.md is made from their results."""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from jacrec import Adjoint, MultiStep, policy_gradient
from jacrec.engine.jacobians import chain
from tests import ROOT

FOLDER = ROOT / "benchmarks"
TINY = ("--tasks", "hopper", "--particles", "1", "--steps", "2", "--width", "16")


@pytest.fixture
def load(monkeypatch):
    """A benchmark module by name, as the scripts import each other."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def run(*command, **variables):
    """A script in a process of its own, as users start it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_gradients_agree_and_the_results_have_their_fields(tmp_path, load):
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
    assert all(row["absent"].values()), "who does not take part says why"
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
def test_who_takes_part_where_the_world_model_is_no_chain(load, model, absent):
    speed, contestants = load("grad_speed"), load("peers").CONTESTANTS
    names = [name for name, c in contestants.items() if "cpu" in c.default_on]
    (row,) = speed.measure([load("problems").Size("hopper", 3, 2, 1, 8, model)], names, repetitions=1, budget=0.01)
    assert set(row["absent"]) == absent
    assert set(row["ms"]) == set(names) - absent
    assert row["difference"] < 1e-10


def test_a_wrong_gradient_is_not_timed(load, monkeypatch):
    peers, speed, problems = load("peers"), load("grad_speed"), load("problems")
    right = peers.CONTESTANTS["torch autograd"]

    def doubled(case):
        entry = right.prepare(case)
        return problems.Entry(entry.gradient, lambda answer: {k: 2 * g for k, g in answer.gradient.items()})

    monkeypatch.setitem(peers.CONTESTANTS, "doubled", peers.Contestant("doubled", "", doubled))
    monkeypatch.setattr(speed, "timed", lambda *args, **options: pytest.fail("it was timed"))
    with pytest.raises(SystemExit, match=r"the gradient of doubled differs from reverse mode's by 1\.0e\+00 in float64"):
        speed.measure([problems.Size("hopper", 2, 1, 2, 16)], ["forward", "doubled"])


def test_a_contestant_without_float64_is_held_to_reverse_modes_own_error(load, monkeypatch):
    peers, speed, problems = load("peers"), load("grad_speed"), load("problems")
    right = peers.CONTESTANTS["torch autograd"]

    def rounded(case):
        if case.state.dtype == torch.float64:
            raise problems.Unavailable("float32 alone")
        entry = right.prepare(case)
        return problems.Entry(entry.gradient, lambda a: {k: g.bfloat16().float() for k, g in a.gradient.items()})

    monkeypatch.setitem(peers.CONTESTANTS, "rounded", peers.Contestant("rounded", "", rounded))
    with pytest.raises(SystemExit, match=r"rounded has an error of .*, reverse mode in the same precision"):
        speed.measure([problems.Size("hopper", 2, 1, 2, 16)], ["rounded"])


@pytest.mark.parametrize(
    "size",
    [
        ("hopper", 1, 1, 1, 8),
        ("halfcheetah", 4, 2, 3, 16),
        ("antmaze", 5, 3, 2, 24),
        ("hopper", 3, 2, 2, 16, "ddim"),
        ("hopper", 3, 2, 3, 16, "flow"),
        ("hopper", 3, 2, 1, 16, "meanflow"),
        ("hopper", 3, 2, 1, 16, "deterministic"),
    ],
)
def test_the_floor_counts_what_torch_counts(load, size):
    floor, problems = load("floor"), load("problems")
    case = problems.make(problems.Size(*size))
    counted = floor.count(case)
    with FlopCounterMode(display=False) as counter:
        policy_gradient(*case.arguments, method=Adjoint())
    assert counter.get_total_flops() == 2 * (counted.multiply_adds + counted.repeated)
    with FlopCounterMode(display=False) as counter:
        load("peers").CONTESTANTS["torch autograd"].prepare(case).gradient()
    assert counter.get_total_flops() >= 2 * counted.multiply_adds


@pytest.mark.parametrize("model", ["ensemble", "multistep"])
@pytest.mark.parametrize(("M", "H"), [(1, 1), (8, 2), (5, 3)])
def test_the_floor_of_what_is_not_computed_at_it(load, model, M, H):
    """An ensemble's rows are padded to equal groups, a multi-step model's first layer is computed in every sweep."""
    floor, problems = load("floor"), load("problems")
    case = problems.make(problems.Size("hopper", M, H, 1, 16, model))
    counted = floor.count(case)
    with FlopCounterMode(display=False) as counter:
        policy_gradient(*case.arguments, method=Adjoint() if model == "ensemble" else MultiStep())
    least = 2 * (counted.multiply_adds + counted.repeated)
    assert least <= counter.get_total_flops() <= (2 if model == "ensemble" else 1.1) * least
    if (M, H) == (1, 1) and model == "multistep":
        assert counter.get_total_flops() == least


def test_the_floor_is_the_largest_of_its_limits(load):
    floor = load("floor")
    counted = floor.Count(multiply_adds=10**9, repeated=0, weight_bytes=10**8, dependent_calls=100, dependent_bytes=10**7)
    limits = floor.floor(counted, floor.Rates(flops=1e12, bytes=1e11, thread_bytes=1e10, dependent_call=2e-6))
    assert (limits.arithmetic, limits.bytes, limits.latency) == pytest.approx((2.0, 1.0, 1.0))
    assert limits.ms == limits.arithmetic
    slow_calls = floor.floor(counted, floor.Rates(1e12, 1e11, 1e10, dependent_call=5e-5))
    assert slow_calls.ms == slow_calls.latency == pytest.approx(5.0)


def test_rates_are_measured(load):
    rates = load("floor").measure_rates(32, torch.float32, "cpu")
    assert 1e8 < rates.flops < 1e14
    assert 1e8 < rates.thread_bytes <= rates.bytes < 1e13


@pytest.mark.parametrize("name", ["forward", "adjoint", "adjoint recomputed"])
def test_phases_are_the_whole(load, name):
    phases, peers, problems = load("phases"), load("peers"), load("problems")
    case = problems.make(problems.Size("hopper", 2, 2, 2, 16))
    gradient = peers.CONTESTANTS[name].prepare(case).gradient
    before = gradient().gradient
    parts = phases.phases(gradient, "cpu")
    assert set(parts) == set(phases.PHASES)
    assert all(ms > 0 for phase, ms in parts.items() if phase != "Jacobians")
    assert parts["Jacobians"] >= 0
    assert all(torch.equal(before[k], g) for k, g in gradient().gradient.items()), "the clocks are gone"
    assert phases.phases(peers.CONTESTANTS["torch autograd"].prepare(case).gradient, "cpu") == {}


def test_timing_makes_the_calls_that_it_says(load):
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


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="nobody counts here what other processes take")
def test_other_processes_are_noticed(load):
    others = load("harness").Others()
    worker = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(1.0)
    finally:
        worker.kill()
        worker.wait()
    assert 0.5 / os.cpu_count() < others.share() <= 1.1


def test_results_of_odd_sizes_stay_out_of_the_results(load):
    as_usual = load("harness").as_usual
    parser = argparse.ArgumentParser()
    for option in ("--json", "--full", "--threads"):
        parser.add_argument(option)
    assert as_usual(parser, parser.parse_args([]))
    assert as_usual(parser, parser.parse_args(["--json", "x"]))
    assert not as_usual(parser, parser.parse_args(["--full", "x"]))
    assert as_usual(parser, parser.parse_args(["--full", "x"]), "full")
    assert not as_usual(parser, parser.parse_args(["--threads", "1"]), "full")


def test_goals_are_ratios_of_the_rows(load):
    goals = load("goals")
    ms = {name: {"median": x} for name, x in {"torch autograd": 60.0, "jax scan": 12.0, "adjoint": 4.0, "auto": 5.0}.items()}
    peak = {"torch autograd": 900, "jax scan": None, "adjoint": 20, "auto": 10}
    row = dict(task="hopper", M=16, H=5, K=10, ms=ms, peak_bytes=peak, floor={"ms": 2.0})
    jax, autograd = goals.evaluate([row, {**row, "M": 2}], "cpu")
    assert (jax["least"], jax["least_of_the_fastest"], jax["sizes"]) == (2.4, 3.0, 1)
    assert ": reached; Auto 2.40× (at hopper M 16 H 5)" in goals.sentence(jax)
    assert autograd["least"] == 12.0
    told = {g["what"]: g["least"] for g in goals.evaluate([{**row, "K": 20}, {**row, "M": 4096}], "cuda")}
    assert told["the share of the floor"] == 0.4
    assert told["less memory than torch autograd"] == 90.0
    without = {**row, "ms": {"auto": {"median": 1.0}}}
    assert goals.evaluate([without], "cpu") == []


def test_decisions(tmp_path, load, capsys):
    path = tmp_path / "decisions.json"
    small = ("--horizon", "1", "--batch", "1", "2", "--batch-particles", "1", "--batch-horizon", "1", "--repetitions", "10")
    load("decision_speed").main([*TINY, *small, "--json", str(path)])
    result = json.loads(path.read_text())
    ways = [(row["model"], row["objective"]) for row in result["rows"]]
    every = ("diffusion", "ddim", "flow", "meanflow", "deterministic", "ensemble", "multistep")
    assert ways == [
        *((model, "return") for model in every),
        ("meanflow", "decoupled-critic"),
        ("meanflow", "decoupled-one-step"),
    ]
    for row in result["rows"]:
        assert row["time_step_ms"] == pytest.approx(8.0)
        assert 0 < row["ms"]["median"] <= row["ms"]["p99"] <= row["ms"]["max"]
    assert [r["N"] for r in result["lockstep"]] == [1, 2]
    assert result["lockstep"][0]["ratio_to_one"] == 1.0
    assert "8 ms (Hopper-v4)" in capsys.readouterr().out


def test_time_steps_without_gymnasium_are_the_environments_own(load):
    decisions = load("decision_speed")
    for task, seconds in decisions.TIME_STEPS.items():
        assert decisions.time_step_ms(task) == (pytest.approx(1e3 * seconds), decisions.ENVIRONMENTS[task])
    assert decisions.time_step_ms("antmaze")[0] is None


def test_goals_of_decisions(load):
    decisions = load("decision_speed")
    row = dict(task="hopper", model="diffusion", M=16, H=5, K=10, updates=1, objective="return", ms={"median": 7.0, "p99": 9.0})
    one_step = {**row, "model": "meanflow", "K": 1}
    ten = dict(task="hopper", M=16, H=5, N=10, ratio_to_one=3.5)
    lines = decisions.goal_lines([row, one_step], [ten])
    assert "in 8 ms: reached" in lines[0]
    assert "in 1.5 ms: NOT reached" in lines[1]
    assert "at most 3× one (hopper M 16 H 5): NOT reached, 3.50×" in lines[2]


def with_options(**parts):
    """The plain chain with the options of a fused twin."""

    def forward(*args, precision=None, tile=None):
        return chain.chain_forward(*args)

    def record(*args, recompute=False, precision=None, tile=None):
        return chain.chain_record(*args, recompute=recompute)

    def adjoint(*args, tile=None):
        return chain.chain_adjoint(*args)

    return SimpleNamespace(**{"chain_forward": forward, "chain_record": record, "chain_adjoint": adjoint, **parts})


def test_kernels_of_the_chain(load):
    kernels, problems, floor = load("kernel_chain"), load("problems"), load("floor")
    case = problems.make(problems.Size("hopper", 3, 1, 2, 16))
    rates = floor.Rates(1e11, 1e11, 5e10, 0.0)
    rows = kernels.measure_chain(case, with_options(), [2, 14], ["tf32x3", None], rates, 1)
    names = ["chain_forward", "chain_forward", "chain_adjoint", "chain_adjoint recomputed"]
    assert [r["kernel"] for r in rows] == [name for name in names for _ in range(2)]
    forward = rows[0]
    hidden, inputs = 2 * 16 * 16, (11 + 3) * 16
    per_row = inputs + 2 * (11 * 16 + hidden + 16 * 11)  # K = 2
    assert forward["flops"] == 2 * (3 * (1 + 2) * per_row + 2 * 32 * 16)  # and the table of levels
    assert forward["flops_per_second"] == pytest.approx(1e3 * forward["flops"] / forward["ms"]["fused"]["median"])
    assert forward["share_of_peak_flops"] == pytest.approx(forward["flops_per_second"] / 1e11, abs=1e-4)


def test_a_wrong_kernel_is_not_timed(load):
    kernels, problems, floor = load("kernel_chain"), load("problems"), load("floor")
    case = problems.make(problems.Size("hopper", 3, 1, 2, 16))
    rates = floor.Rates(1e11, 1e11, 5e10, 0.0)

    def wrong(*args, **options):
        next_state, tangents = chain.chain_forward(*args)
        return next_state, tangents + 1e-4

    with pytest.raises(SystemExit, match=r"chain_forward \(ieee\) has an error of .*; nothing was timed"):
        kernels.measure_chain(case, with_options(chain_forward=wrong), [2], ["ieee"], rates, 1)


def test_kernel_speed(tmp_path, load):
    path = tmp_path / "kernels.json"
    load("kernel_speed").main([*TINY, "--horizon", "1", "--repetitions", "1", "--device", "cpu", "--json", str(path)])
    result = json.loads(path.read_text())
    assert result["peaks"]["flops"] > 0
    for row in result["rows"]:
        assert row["kernel"].startswith("gradient, ")
        assert row["flops_per_second"] > 0 < row["bytes_per_second"]


def result_of(machine, auto):
    """A results file of one size."""
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
            )
            for M in (1, 2)
        ],
    }


def test_the_table_is_made_from_every_machines_results(tmp_path, load):
    table = load("table")
    for name, machine, auto in (("cuda_h200", "H200", 2.0), ("cpu_epyc", "EPYC", 3.0)):
        (tmp_path / f"grad_speed_{name}.json").write_text(json.dumps(result_of(machine, auto)))
    (tmp_path / "grad_speed_cpu.json").write_text("of an older form: not shown")
    text = table.tables(tmp_path)
    assert text.index("EPYC, 2 threads, torch 2.13.0, numba 0.68.1, jax 0.10.2; commit abc") < text.index("H200")
    assert "| hopper, H = 3, M = 1 | 20.00 | 6.00 | 14.00 | 3.00 | 2.00× | 33% |" in text
    assert "| hopper, H = 3, M = 2 | 40.00 | 12.00 | 28.00 | 4.00 | 3.00× | 25% |" in text
    assert "Forward" not in text, "a column without numbers"


def test_the_table_replaces_what_stands_between_the_markers(load):
    replaced = load("table").replaced
    page = "before\n<!-- grad_speed -->\nold \\1\n<!-- /grad_speed -->\nafter\n"
    assert replaced(page, "| new \\1 |\n") == "before\n<!-- grad_speed -->\n| new \\1 |\n<!-- /grad_speed -->\nafter\n"
    with pytest.raises(ValueError, match="found none"):
        replaced("no markers", "")


def test_the_results_page_has_the_table(load):
    table = load("table")
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    if "<!-- grad_speed -->" not in page:
        pytest.skip("docs/results.md has no <!-- grad_speed --> markers")
    assert table.replaced(page, table.tables()) == page, "run: python benchmarks/table.py --write docs/results.md"


def test_a_machine_without_a_gpu_is_told_so(load, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert load("gpu").main([]) == 1
    assert "expected a CUDA GPU" in capsys.readouterr().err


def test_the_gpu_command_knows_its_parts(load, monkeypatch):
    gpu = load("gpu")
    for part in gpu.PARTS:
        scripts = [ROOT / word for word in part.command if word.startswith("benchmarks/") and word.endswith(".py")]
        assert all(script.exists() for script in scripts)
    assert gpu.run_part(gpu.Part("x", ("-c", "1"), 9, ("no_such_module",)), 9) == "left out: needs no_such_module"
    assert gpu.run_part(gpu.Part("x", ("-c", "raise SystemExit(3)"), 9), 9) == "failed with status 3"
    assert gpu.run_part(gpu.Part("x", ("-c", "1"), 9), 0.5) == "left out: no time was left"
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 0.1)
    assert gpu.run_part(gpu.Part("x", ("-c", "import time; time.sleep(60)"), 9), 0.9) == "stopped after 1 s"
    assert gpu.run_part(gpu.Part("x", ("-c", "import jacrec.kernels.cpu"), 60), 60) == "done"


def test_a_checkout_runs_without_being_installed():
    program = "import sys, jacrec.kernels.cpu; print(jacrec.kernels.__path__[0])"
    # -S: without the site-packages that an installation would be found in; torch and numpy are then where they are
    packages = [p for p in sys.path if p.endswith("site-packages")]
    path = os.pathsep.join([str(ROOT), *packages])
    done = run("-S", "-c", program, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == ROOT / "kernels"
