"""The ensemble's training step against autograd of its own loss."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jacrec.models.dynamics import EnsembleDynamics
from jacrec.models.dynamics.ensemble import HIGHEST, LOWEST, bounded
from jacrec.training.config import DynamicsConfig
from jacrec.training.stages.dynamics import DynamicsStage
from jacrec.training.stages.ensemble import BETA
from jacrec.training.stages.objectives import make_dynamics
from tests.conftest import property_cases
from tests.strategies import architectures
from tests.training_data import linear_system

DATA = linear_system()


@property_cases(0.05)
@given(options=architectures(), members=st.integers(1, 4), batch=st.integers(1, 9), seed=st.integers(0, 9))
def test_step_equals_autograd_of_the_models_likelihood(options, members, batch, seed):
    """Every network has its own rows; each likelihood term is weighted by its variance to the power β."""
    config = DynamicsConfig(kind="ensemble", members=members, batch_size=batch, max_grad_norm=None, **options)
    stage = DynamicsStage(DATA, DATA, config, seed, dtype=torch.float64)
    model = make_dynamics(3, 2, config).double()
    model.load_state_dict(stage.model.state_dict())
    assert isinstance(model, EnsembleDynamics)
    (index,) = stage.stream.at(0)
    assert index.shape == (members, batch)
    loss = stage.step(0)["loss"]
    expected, weighted = [], torch.zeros((), dtype=torch.float64)
    for i, own in enumerate(index):
        rows = DATA.rows(own.numpy())
        s, a, s2 = (torch.from_numpy(x).double() for x in (rows.state, rows.action, rows.next_state))
        expected.append(model.loss(s, a, s2)[i].mean().detach())
        mean, log_variance = (x[i] for x in model.predict(s, a))
        terms = 0.5 * ((mean - model.encode(s, s2)).square() * torch.exp(-log_variance) + log_variance)
        weighted = weighted + (terms * torch.exp(BETA * log_variance.detach())).mean()
    weighted.backward()
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-12, atol=1e-12)
    for name, p in model.named_parameters():
        torch.testing.assert_close(stage.regression.flat.gradient_of[name], p.grad, rtol=1e-11, atol=1e-12)


def test_variances_are_bounded():
    raw = torch.linspace(-60, 60, 999, dtype=torch.float64, requires_grad=True)
    value, slope = bounded(raw)
    assert ((value >= LOWEST) & (value <= HIGHEST + 1e-4)).all()
    torch.testing.assert_close(torch.autograd.grad(value.sum(), raw)[0], slope.detach(), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(bounded(torch.tensor(-5.0))[0], torch.tensor(-5.0), rtol=0, atol=5e-3)


def test_networks_are_selected_uniformly():
    f = EnsembleDynamics(2, 1, (4,), members=3)
    noise = torch.randn(30_000, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.bincount(f.member(noise)).tolist() == pytest.approx([10_000] * 3, rel=0.03)
    noise[0, 1, 0], noise[1, 1, 0] = -50.0, 50.0  # where the normal distribution function is 0 and 1
    assert f.member(noise)[:2].tolist() == [0, 2]


def test_batching_seeds_of_ensembles_is_rejected():
    stages = [DynamicsStage(DATA, DATA, DynamicsConfig(kind="ensemble", hidden=(4,)), seed) for seed in (0, 1)]
    with pytest.raises(ValueError, match=r"^dynamics\.kind: .*got 'ensemble'"):
        DynamicsStage.batched_step(stages)
