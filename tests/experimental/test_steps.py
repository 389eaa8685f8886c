"""Normalised and natural steps of the controller."""

import pytest
import torch

from jacrec import MPC, BatchedPolicy, MPCConfig, World, linearize
from jacrec.experimental import FisherStep, NormalisedStep
from tests.experimental.conftest import d, parameters


@pytest.mark.parametrize("step", [NormalisedStep(), FisherStep()])
def test_no_step_moves_a_row_that_is_not_finite(setup, step):
    policy, world = setup
    bad = World(world.dynamics, lambda s, a: torch.where(s[..., 0] > 40, torch.nan, a.sum(-1)), world.critic, 0.9)
    states = torch.randn(3, d).double()
    states[1, 0] = 50.0
    control = MPC(policy, bad, MPCConfig(horizon=1, particles=4, lr=1e-2), batch=3, update=step)
    start = parameters(control.policy)
    control.act(states)
    assert control.last.accepted.tolist() == [[True, False, True]]
    assert (control.drift() > 0).tolist() == [True, False, True]
    assert all(torch.equal(p[1], start[k][1]) for k, p in control.policy.named_parameters())


def test_a_normalised_step_is_as_long_as_lr_whatever_the_critics_scale(setup):
    policy, world = setup
    states = torch.randn(3, d).double()
    found = []
    for scale in (1.0, 1e-6):
        scaled = World(
            world.dynamics, lambda s, a, c=scale: c * world.reward(s, a), lambda s, a, c=scale: c * world.critic(s, a), 0.9
        )
        control = MPC(policy, scaled, MPCConfig(horizon=2, particles=3, lr=0.03), batch=3, update=NormalisedStep())
        control.act(states)
        torch.testing.assert_close(control.drift(), torch.full((3,), 0.03).double())
        found.append(parameters(control.policy))
    for k in found[0]:
        torch.testing.assert_close(found[0][k], found[1][k])


def test_a_fisher_step_changes_the_visited_actions_by_at_most_lr(setup):
    """To first order, in root mean square over the states that its own noise visits."""
    policy, world = setup
    states = torch.randn(2, d).double()
    config = MPCConfig(horizon=2, particles=5, lr=1e-4, seed=1)
    control = MPC(policy, world, config, batch=2, update=FisherStep(damping=1e-3))
    noise = torch.randn(2, 5, 2, *world.dynamics.noise_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = linearize(BatchedPolicy(policy, 2), world, states, noise)
    control.act(states)
    visited = before.states.flatten(1, 2)
    change = control.policy(visited) - before.actions.flatten(1, 2)
    size = change.square().sum(-1).mean(-1).sqrt()
    assert (size <= 1e-4 * 1.001).all()
    assert (size >= 0.3e-4).all(), "with little damping nearly all of it"
