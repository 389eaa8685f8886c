"""Exported programs give what the networks give, for any batch size."""

import json
import sys

import numpy as np
import pytest
import torch

from jacrec import Actor, DiffusionDynamics, RewardModel, TwinCritic, World, cli
from jacrec.data.transitions import DatasetInfo
from jacrec.models.dynamics.ensemble import EnsembleDynamics
from jacrec.training.config import ReBRACConfig, TrainConfig
from jacrec.training.export import export_run
from jacrec.training.run import Run

SMALL = dict(hidden=(8, 8))


def small_run(path, dynamics):
    info = DatasetInfo("x", "Mine-v0", action_low=(-2.0,), action_high=(2.0,))
    parts = [net(3, 2, **SMALL).eval() for net in (Actor, RewardModel, TwinCritic)]
    return Run(parts[0], World(dynamics.eval(), *parts[1:], 0.9), info, TrainConfig(rebrac=ReBRACConfig()), path)


def inputs(run, batch):
    noise = torch.randn(batch, *run.world.dynamics.noise_shape)
    return torch.randn(batch, 3), torch.rand(batch, 2) * 2 - 1, noise


def expected(run, state, action, noise):
    world = run.world
    return {
        "policy": ((state,), run.policy(state)),
        "dynamics": ((state, action, noise), world.dynamics(state, action, noise)),
        "reward": ((state, action), world.reward(state, action)),
        "critic": ((state, action), world.critic(state, action)),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_programs_of_torch(tmp_path, monkeypatch, capsys):
    run = small_run(tmp_path / "run", EnsembleDynamics(3, 2, members=3, **SMALL))
    monkeypatch.setattr("jacrec.commands.export.load_run", lambda path: run)
    assert cli.main(["export", str(run.path)]) == 0
    assert "the improved action is found by gradient steps" in capsys.readouterr().out
    out = run.path / "export"
    for batch in (1, 7):
        for name, (arguments, value) in expected(run, *inputs(run, batch)).items():
            found = torch.export.load(out / f"{name}.pt2").module()(*arguments)
            torch.testing.assert_close(found, value)
    record = json.loads((out / "export.json").read_text())
    assert record["parts"]["dynamics"]["inputs"] == {"state": ["B", 3], "action": ["B", 2], "noise": ["B", 2, 3]}
    assert (record["action_bounds"], record["discount"]) == ({"low": [-2.0], "high": [2.0]}, 0.9)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_programs_of_onnx(tmp_path):
    pytest.importorskip("onnxscript", reason="needs onnx and onnxscript, pip install 'jacrec[onnx]'")
    reference = pytest.importorskip("onnx.reference")
    run = small_run(tmp_path, DiffusionDynamics(3, 2, steps=2, **SMALL))
    export_run(run, tmp_path, "onnx")
    for batch in (1, 7):
        for name, (arguments, value) in expected(run, *inputs(run, batch)).items():
            program = reference.ReferenceEvaluator(str(tmp_path / f"{name}.onnx"))
            fed = dict(zip(program.input_names, map(torch.Tensor.numpy, arguments), strict=True))
            np.testing.assert_allclose(program.run(None, fed)[0], value.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_without_onnx_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"--format onnx: expected .*pip install 'jacrec\[onnx\]'"):
        export_run(small_run(tmp_path, DiffusionDynamics(3, 2, steps=2, **SMALL)), tmp_path, "onnx")
