"""Benchmarks of decisions and kernels, and the command for GPUs."""

import json
from types import SimpleNamespace

import pytest
import torch

from jacrec.engine.jacobians import chain
from tests import ROOT
from tests.benchmarks.scripts import TINY


def test_decision_speed(tmp_path, load, capsys):
    path = tmp_path / "decisions.json"
    small = ("--horizon", "1", "--batch", "1", "2", "--batch-particles", "1", "--batch-horizon", "1", "--repetitions", "10")
    load("decision_speed").main([*TINY, *small, "--json", str(path)])
    result = json.loads(path.read_text())
    settings = [(row["model"], row["objective"]) for row in result["rows"]]
    models = ("diffusion", "ddim", "flow", "meanflow", "deterministic", "ensemble", "multistep")
    assert settings == [
        *((model, "return") for model in models),
        ("meanflow", "decoupled-critic"),
        ("meanflow", "decoupled-one-step"),
    ]
    for row in result["rows"]:
        assert row["time_step_ms"] == pytest.approx(8.0)
        assert 0 < row["ms"]["median"] <= row["ms"]["p99"] <= row["ms"]["max"]
    assert [r["N"] for r in result["lockstep"]] == [1, 2]
    assert result["lockstep"][0]["ratio_to_one"] == 1.0
    ways = [
        f"{name}, {method}"
        for name in ("jacrec's", "policy", "all", "policy, and functions")
        for method in ("auto", "autograd")
    ]
    assert list(result["own"][0]["ratio"]) == list(result["own"][0]["ms"]) == ways
    assert result["own"][0]["ratio"]["jacrec's, auto"] == 1.0
    assert "8 ms (Hopper-v4)" in capsys.readouterr().out


def test_recorded_time_steps_equal_the_environments(load):
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


def test_form_speed(tmp_path, load, capsys):
    path = tmp_path / "forms.json"
    one = ("--tasks", "hopper", "--width", "16", "--steps", "2", "--horizon", "1", "--particles", "1", "--budget", "0.001")
    load("form_speed").main([*one, "--json", str(path)])
    result = json.loads(path.read_text())
    assert [set(row["ms"]) for row in result["rows"]] == [{"forward", "adjoint"}]
    names = ["linearize", "feedback", "state_growth", "gradient_signal"]
    assert list(result["diagnostics"][-1]["ms"]) == [*names, *(f"{name}, plain torch" for name in names)]
    assert capsys.readouterr().out.count(" x\n") == 14


def with_options(**parts):
    """The readable chain with the options of the fused kernels."""

    def forward(*args, precision=None, tile=None):
        return chain.chain_forward(*args)

    def record(*args, recompute=False, precision=None, tile=None):
        return chain.chain_record(*args, recompute=recompute)

    def adjoint(*args, tile=None):
        return chain.chain_adjoint(*args)

    return SimpleNamespace(**{"chain_forward": forward, "chain_record": record, "chain_adjoint": adjoint, **parts})


def test_chain_kernels(load):
    kernels, problems, floor = load("kernel_chain"), load("problems"), load("floor")
    case = problems.make(problems.Size("hopper", 3, 1, 2, 16))
    rates = floor.Rates(1e11, 1e11, 5e10, 0.0)
    rows = kernels.measure_chain(case, with_options(), [2, 14], ["tf32x3", None], rates, 1)
    names = ["chain_forward", "chain_forward", "chain_adjoint", "chain_adjoint recomputed"]
    assert [r["kernel"] for r in rows] == [name for name in names for _ in range(2)]
    forward = rows[0]
    hidden, inputs = 2 * 16 * 16, (11 + 3) * 16
    per_row = inputs + 2 * (11 * 16 + hidden + 16 * 11)  # K = 2
    assert forward["flops"] == 2 * (3 * (1 + 2) * per_row + 2 * 32 * 16)  # plus the table of levels
    assert forward["flops_per_second"] == pytest.approx(1e3 * forward["flops"] / forward["ms"]["fused"]["median"])
    assert forward["share_of_peak_flops"] == pytest.approx(forward["flops_per_second"] / 1e11, abs=1e-4)


def test_wrong_kernels_are_not_timed(load):
    kernels, problems, floor = load("kernel_chain"), load("problems"), load("floor")
    case = problems.make(problems.Size("hopper", 3, 1, 2, 16))
    rates = floor.Rates(1e11, 1e11, 5e10, 0.0)

    def wrong(*args, **options):
        next_state, tangents = chain.chain_forward(*args)
        return next_state, tangents + 1e-4

    with pytest.raises(SystemExit, match=r"chain_forward \(ieee\) has an error of "):
        kernels.measure_chain(case, with_options(chain_forward=wrong), [2], ["ieee"], rates, 1)


def test_kernel_speed(tmp_path, load):
    path = tmp_path / "kernels.json"
    load("kernel_speed").main([*TINY, "--horizon", "1", "--repetitions", "1", "--device", "cpu", "--json", str(path)])
    result = json.loads(path.read_text())
    assert result["peaks"]["flops"] > 0
    for row in result["rows"]:
        assert row["kernel"].startswith("gradient, ")
        assert row["flops_per_second"] > 0 < row["bytes_per_second"]


def test_gpu_command_requires_a_gpu(load, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert load("gpu").main([]) == 1
    assert "expected a CUDA GPU" in capsys.readouterr().err


def test_parts_of_the_gpu_command(load, monkeypatch):
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
