"""One-step samples of trained models on a linear system with known noise."""

import importlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from jacrec.models.dynamics.sampler import Sampler, with_sampler
from jacrec.training.config import DynamicsConfig, ReBRACConfig, RewardConfig, TrainConfig
from jacrec.training.run import train
from jacrec.training.stages.dynamics import DynamicsStage, as_tensor
from jacrec.training.stages.samples import sample_check, wasserstein
from tests import ROOT
from tests.training_data import linear_system

NOISE = 0.3
DATA = linear_system(episodes=60, noise=NOISE)
KEPT, HELD_OUT = DATA.split(0.25, 0)
STATE, ACTION, NEXT = (as_tensor(x, "cpu") for x in (HELD_OUT.state, HELD_OUT.action, HELD_OUT.next_state))


def true_coefficients():
    """Coefficients of the conditional mean s' = s A + a B, by least squares over all of the data."""
    x = np.concatenate([DATA.state, DATA.action], -1)
    return torch.from_numpy(np.linalg.lstsq(x, DATA.next_state, rcond=None)[0])


@pytest.mark.parametrize(
    ("kind", "options", "sampler"),
    [
        ("meanflow", {"prediction": "velocity", "adaptive_power": 0.0}, Sampler()),
        ("flow", {}, Sampler(steps=16)),
        ("diffusion", {"steps": 40}, Sampler(sampler="ddim", levels=tuple(range(2, 41, 2)))),
        ("ensemble", {"members": 3}, Sampler()),
    ],
)
def test_samples_match_the_true_conditional_distribution(kind, options, sampler):
    """In standard deviations of the noise: error of the mean < 0.3, samples' deviation within 0.2 of 1, W1 < 0.2.

    Measured: 0.13 to 0.26, 0.88 to 0.94, 0.12 to 0.15. A model without noise has deviation 0 and W1 0.8.
    """
    config = DynamicsConfig(kind=kind, hidden=(64, 64), updates=2500, batch_size=256, lr=2e-3, ema=0.99, **options)
    stage = DynamicsStage(KEPT, HELD_OUT, config, seed=0)
    for t in range(config.updates):
        stage.step(t)
    model: Any = with_sampler(stage.modules()["dynamics"], sampler)
    noise = torch.randn(len(STATE), 128, *model.noise_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        samples = model(*(x.unsqueeze(1).expand(-1, 128, -1) for x in (STATE, ACTION)), noise)
    expected = torch.cat([STATE, ACTION], -1) @ true_coefficients()
    assert (samples.mean(1) - expected).square().mean().sqrt() < 0.3 * NOISE
    assert samples.std(1).mean() == pytest.approx(NOISE, rel=0.2)
    check = sample_check(model, STATE, ACTION, NEXT, noise)
    assert check.spread == pytest.approx(1, abs=0.2)
    scale = float((NEXT - STATE).std(0).mean())
    assert check.wasserstein < 0.2 * NOISE / scale
    assert check.rmse == pytest.approx(NOISE * 2**0.5, rel=0.15)


def test_miscalibrated_models_are_detected():
    A = true_coefficients()

    class LinearGaussian:
        noise_shape = (3,)

        def __call__(self, state, action, noise):
            return torch.cat([state, action], -1) @ A + self.width * noise + self.offset

        width, offset = NOISE, 0.0

    f, noise = LinearGaussian(), torch.randn(len(STATE), 16, 3, generator=torch.Generator().manual_seed(2))
    calibrated = sample_check(f, STATE, ACTION, NEXT, noise)
    f.width = 0.5 * NOISE
    narrow = sample_check(f, STATE, ACTION, NEXT, noise)
    f.width, f.offset = NOISE, 0.5
    shifted = sample_check(f, STATE, ACTION, NEXT, noise)
    assert calibrated.spread == pytest.approx(1, abs=0.05)
    assert narrow.spread == pytest.approx(0.5, abs=0.05)
    assert calibrated.wasserstein < 0.3 * min(narrow.wasserstein, shifted.wasserstein)
    assert calibrated.bias < 0.1 * shifted.bias
    with pytest.raises(ValueError, match=r"^noise: .*at least 3 .*got 2"):
        sample_check(f, STATE, ACTION, NEXT, noise[:, :2])


def test_wasserstein_of_shifted_and_scaled_samples():
    a = torch.randn(4000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert wasserstein(a, a.flip(0)).tolist() == [0, 0]
    torch.testing.assert_close(wasserstein(a, a + torch.tensor([0.3, -0.1])), torch.tensor([0.3, 0.1]).double())
    assert wasserstein(a, 2 * a)[0] == pytest.approx((2 / np.pi) ** 0.5, rel=0.05)  # E |n|


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "paper_checks"))
    module = importlib.import_module("one_step_models")
    monkeypatch.setattr(module, "load", lambda source: DATA)
    return module


def test_the_script_compares_models(script, tmp_path):
    small = {"hidden": (8,), "updates": 2, "batch_size": 8}
    config = TrainConfig(
        data="linear",
        dynamics=DynamicsConfig(steps=4, eval_transitions=9, **small),
        rebrac=ReBRACConfig(**small),
        reward=RewardConfig(eval_transitions=9, **small),
    )
    run = train(config, tmp_path / "run", data=DATA, quiet=True)
    other = replace(config, dynamics=DynamicsConfig(kind="meanflow", eval_transitions=9, **small))
    train(other, tmp_path / "mean", stages=("dynamics",), data=DATA, quiet=True)
    path = script.main(run, (f"one={tmp_path / 'mean'}",), transitions=50, samples=4, out=tmp_path / "results")
    found = json.loads(path.with_suffix(".json").read_text())["models"]
    calls = {"the run's": 4, "the run's, DDIM 1": 1, "the run's, DDIM 2": 2, "one": 1}
    assert {name: own["calls"] for name, own in found.items()} == calls
    assert str(tmp_path) not in path.read_text()
    assert f"| one | 1 | {found['one']['rmse']:.4f} ± " in path.read_text()
    with pytest.raises(ValueError, match=r"--models: expected NAME=FOLDER, got 'x'"):
        script.main(run, ("x",), out=tmp_path / "results")
