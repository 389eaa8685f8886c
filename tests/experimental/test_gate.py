"""The signal gate: which steps are held back, row by row, and with how many particles."""

import numpy as np
import pytest
import torch

from jacrec import (
    MPC,
    MPCConfig,
    World,
    policy_gradient,
)
from jacrec.experimental import FisherStep, Gated
from tests.experimental.conftest import d, parameters, same

OPTIONS = dict(horizon=2, particles=4, lr=1e-2)


@pytest.mark.parametrize("batch", [None, 3])
def test_a_gate_that_lets_everything_through_changes_nothing(setup, batch):
    state = torch.randn(*([3] if batch else []), d).double()
    options = dict(horizon=2, particles=300, lr=1e-2, updates=2)
    free, gated = (MPC(*setup, MPCConfig(**options), batch=batch, update=update) for update in (None, Gated(1e-12)))
    for _ in range(4):
        expected, action = free.act(state), gated.act(state)
        trust = gated.last.trust
        assert trust.particles.shape == gated.last.gradient_norm.shape == ((2, 3) if batch else (2,))
        assert (trust.particles == 300).all()
        torch.testing.assert_close(action, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gated.last.objective, free.last.objective, rtol=1e-10, atol=1e-12)
        assert gated.last.accepted.all()
        assert not trust.gated.any()


@pytest.mark.parametrize("batch", [None, 3])
def test_a_gate_that_lets_nothing_through_leaves_every_bit(setup, batch):
    control = MPC(*setup, MPCConfig(**OPTIONS), batch=batch, update=Gated(1e12, 13))
    start = parameters(control.policy)
    state = torch.randn(*([3] if batch else []), d).double()
    action = control.act(state)
    trust = control.last.trust
    assert same(parameters(control.policy), start)
    torch.testing.assert_close(action, setup[0](state).detach())
    assert (trust.particles == 12).all(), "4, 8, and as many fours as fit in 13"
    assert trust.gated.all()
    assert not control.last.accepted.any()
    assert (trust.snr < 1e12).all()


def test_rows_are_gated_one_by_one(setup):
    """A bound between the rows' ratios: one row steps at once, others after more particles, or never."""
    policy, world = setup
    states = torch.randn(6, d).double()
    ratios = []
    for bound in (1e-9, 1e9):
        control = MPC(policy, world, MPCConfig(**OPTIONS), batch=6, update=Gated(bound, 16))
        control.act(states)
        ratios.append(control.last.trust.snr[0])
    bound = float(ratios[1].median())
    control = MPC(policy, world, MPCConfig(**OPTIONS), batch=6, update=Gated(bound, 16))
    start = parameters(control.policy)
    control.act(states)
    step, trust = control.last, control.last.trust
    assert 0 < step.accepted.sum() < 6
    assert torch.equal(step.accepted, trust.snr >= bound)
    assert torch.equal(step.accepted, ~trust.gated)
    assert (trust.particles[trust.gated] == 16).all()
    assert len(set(trust.particles[0].tolist())) > 1
    for k, p in control.policy.named_parameters():
        moved = (p != start[k]).flatten(1).any(1)
        assert not moved[trust.gated[0]].any()
    assert torch.equal(control.drift() > 0, step.accepted[0])


def test_a_gated_step_goes_along_the_gradient_of_all_its_particles(setup):
    """The noise of the later draws follows that of the first one in the generator's stream."""
    policy, world = setup
    state = torch.randn(d).double()
    control = MPC(policy, world, MPCConfig(**OPTIONS, seed=3), update=Gated(1e-12, 64))
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(64, 2, *world.dynamics.noise_shape, generator=generator, dtype=torch.float64)
    control.act(state)
    particles = int(control.last.trust.particles)
    assert particles > 4, "the first four particles disagree"
    groups = [policy_gradient(policy, world, state, part) for part in noise[:particles].split(2)]
    flat = torch.stack([torch.cat([g.flatten() for g in x.gradient.values()]) for x in groups])
    noise_square = flat.var(0).sum() / len(groups)
    snr = (flat.mean(0).square().sum() - noise_square) / noise_square
    torch.testing.assert_close(control.last.trust.snr[0], snr, rtol=1e-8, atol=0.0)
    torch.testing.assert_close(control.last.objective[0], torch.stack([x.value for x in groups]).mean())
    moved = {k: p.detach() - dict(policy.named_parameters())[k].detach() for k, p in control.policy.named_parameters()}
    assert control.last.accepted
    reference = policy_gradient(policy, world, state, noise[:particles]).gradient
    for k, change in moved.items():
        torch.testing.assert_close(change, 1e-2 * reference[k], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("poison", [None, 1])
def test_a_row_that_is_not_finite_is_rejected_and_not_held(setup, poison):
    policy, world = setup
    bad = World(world.dynamics, lambda s, a: torch.where(s[..., 0] > 40, torch.nan, a.sum(-1)), world.critic, 0.9)
    states = torch.randn(3, d).double()
    if poison is not None:
        states[poison, 0] = 50.0
    control = MPC(policy, bad, MPCConfig(horizon=1, particles=4, lr=1e-2), batch=3, update=Gated(1e9))
    start = parameters(control.policy)
    control.act(states)
    assert same(parameters(control.policy), start)
    assert control.last.trust.gated.tolist() == [[i != poison for i in range(3)]]
    assert control.last.rejected.tolist() == [[i == poison for i in range(3)]]
    assert control.last.trust.particles.tolist() == [[4 if i == poison else 16 for i in range(3)]]


@pytest.mark.parametrize("batch", [None, 2])
def test_it_continues_from_its_state_dict(setup, batch):
    config, gate = MPCConfig(**OPTIONS), Gated(0.5, 8)
    states = torch.randn(7, *([2] if batch else []), d).double()
    whole = MPC(*setup, config, batch=batch, update=gate)
    expected = [whole.act(s) for s in states]
    first = MPC(*setup, config, batch=batch, update=gate)
    for s in states[:3]:
        first.act(s)
    second = MPC(*setup, config, batch=batch, update=gate)
    second.load_state_dict(first.state_dict())
    for s, action in zip(states[3:], expected[3:], strict=True):
        assert torch.equal(second.act(s), action)


def test_all_of_it_together_keeps_a_deadline(setup):
    options = dict(updates=10**6, deadline_ms=60, trust_radius=0.1, max_action_change=0.2)
    control = MPC(*setup, MPCConfig(**OPTIONS, **options), batch=2, update=Gated(0.5, step=FisherStep()))
    control.warm_up()
    for _ in range(3):
        control.act(np.zeros((2, d)))
    assert len(control.last.objective) < 10**6
    assert (control.drift() <= 0.1 + 1e-9).all()
