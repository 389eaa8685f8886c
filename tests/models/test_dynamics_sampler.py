"""A trained world model sampled otherwise: the same weights, another chain."""

import pytest
import torch

from jacrec import DeterministicDynamics, DiffusionDynamics, FlowDynamics, MeanFlowDynamics
from jacrec.models.dynamics.sampler import Sampler, with_sampler
from jacrec.models.networks import has_manual_derivatives
from tests.strategies import shake


@pytest.mark.parametrize(
    ("make", "sampler", "calls", "rows"),
    [
        (lambda: DiffusionDynamics(3, 2, (8,), steps=5), Sampler(sampler="ddim", levels=(2, 5)), 2, 3),
        (lambda: DiffusionDynamics(3, 2, (8,), steps=5, prediction="x0"), Sampler(levels=(5,)), 1, 2),
        (lambda: FlowDynamics(3, 2, (8,), steps=1), Sampler(steps=3), 3, 1),
        (lambda: MeanFlowDynamics(3, 2, (8,)), Sampler(steps=4), 4, 1),
    ],
)
def test_the_weights_stay_and_the_chain_changes(make, sampler, calls, rows):
    f = make().double()
    shake(f)
    other = with_sampler(f, sampler)
    assert has_manual_derivatives(other)
    assert (other.diffusion_steps, other.noise_shape) == (calls, (rows, 3))
    assert other.config == {**f.config, **{k: list(v) if k == "levels" else v for k, v in sampler.changes.items()}}
    made = type(f)(**other.config).double()
    made.load_state_dict(f.state_dict())
    s, a, noise = torch.randn(6, 3).double(), torch.rand(6, 2).double(), torch.randn(6, rows, 3).double()
    assert torch.equal(other(s, a, noise), made(s, a, noise))
    assert all(p.data_ptr() == q.data_ptr() for p, q in zip(other.parameters(), f.parameters(), strict=True))
    assert with_sampler(f, Sampler()) is f


@pytest.mark.parametrize(
    ("make", "sampler", "message"),
    [
        (lambda: FlowDynamics(3, 2, (8,)), Sampler(levels=(1,)), "FlowDynamics: expected steps, .* got levels"),
        (lambda: DeterministicDynamics(3, 2, (8,)), Sampler(steps=2), "DeterministicDynamics: expected nothing, .* got steps"),
        (
            lambda: DiffusionDynamics(3, 2, (8,), steps=4),
            Sampler(levels=(2, 7)),
            r"levels: expected ascending steps within 1..4",
        ),
    ],
)
def test_settings_that_a_model_has_not_are_refused(make, sampler, message):
    with pytest.raises(ValueError, match=message):
        with_sampler(make(), sampler)
