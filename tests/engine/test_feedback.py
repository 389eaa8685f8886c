"""Feedback gains: the policy's tangent planes along the imagined trajectories."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jacrec import Actor, linearize
from tests.conftest import property_cases
from tests.engine.test_linearize import setup
from tests.strategies import shake


def smooth(seed=0):
    """A problem whose policy has no kinks, so that the error has an order."""
    torch.manual_seed(seed)
    _, world, state, noise = setup()
    policy = Actor(3, 2, (8, 8), activation="silu").double()
    shake(policy)
    return policy, world, state, noise


@property_cases(0.02)
@given(seed=st.integers(0, 2**31 - 1))
def test_the_error_is_of_second_order(seed):
    """Ten times nearer to the only particle, a hundred times better."""
    policy, world, state, noise = smooth(seed)
    lin = linearize(policy, world, state, noise[:1])
    gains = lin.feedback()
    direction = torch.randn(3).double()
    direction /= direction.norm()
    for j in range(3):
        s = gains.states[j]
        torch.testing.assert_close(s, lin.states[0, j])
        torch.testing.assert_close(gains.action(j, s), policy(s).detach())
        near = [s + h * direction for h in (1e-2, 1e-3)]
        coarse, fine = ((gains.action(j, x) - policy(x)).norm().item() for x in near)
        assert fine <= 1.5e-2 * coarse + 1e-13


def test_the_gains_are_the_mean_of_the_particles_tangent_planes():
    policy, world, state, noise = smooth()
    lin = linearize(policy, world, state, noise)
    gains = lin.feedback()
    s = torch.randn(3).double() * 0.1 + gains.states[2]
    planes = lin.actions[:, 2] + (lin.Pi_s[:, 2] @ (s - lin.states[:, 2]).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(gains.action(2, s), planes.mean(0).clamp(-1, 1))
    scatter = (lin.states[:, 2] - s).square().sum(-1).mean()
    curvature = torch.func.jacfwd(torch.func.jacrev(policy))(s).norm()
    assert (gains.action(2, s) - policy(s)).norm() <= 2 * curvature * scatter


def test_rows_and_single_states():
    policy, world, _, noise = smooth()
    states = torch.randn(5, 3).double()
    many = linearize(policy, world, states, noise.expand(5, *noise.shape).contiguous()).feedback()
    assert many.gains.shape == (5, 3, 2, 3)
    assert many.horizon == 2
    near = states + 0.01
    together = many.action(0, near)
    for n in range(5):
        alone = linearize(policy, world, states[n], noise).feedback()
        torch.testing.assert_close(together[n], alone.action(0, near[n]))
    torch.testing.assert_close(many.action(0, states), policy(states).detach())


def test_actions_stay_in_the_box():
    policy, world, state, noise = smooth()
    gains = linearize(policy, world, state, noise).feedback()
    far = gains.action(1, gains.states[1] + 1e4)
    assert (far.abs() <= 1).all()
    assert (far.abs() == 1).any()


def test_what_is_asked_has_to_exist():
    policy, world, state, noise = smooth()
    gains = linearize(policy, world, state, noise).feedback()
    with pytest.raises(ValueError, match="j: expected a step up to H = 2, got 3; decide again"):
        gains.action(3, state)
    with pytest.raises(ValueError, match=r"state: expected shape \(3,\) as of the linearised states, got \(2, 3\)"):
        gains.action(0, torch.zeros(2, 3).double())
