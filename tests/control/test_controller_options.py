"""The controller's options of trust: what is held back, how far is imagined, who thinks when."""

import math

import numpy as np
import pytest
import torch

from jacrec import (
    MPC,
    Actor,
    BatchedPolicy,
    DiffusionDynamics,
    MPCConfig,
    RewardModel,
    TwinCritic,
    World,
    linearize,
    policy_gradient,
    state_growth,
)
from jacrec.control import controller
from tests.strategies import shake

d, m = 4, 2


def parameters(policy):
    return {k: p.detach().clone() for k, p in policy.named_parameters()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def setup():
    torch.manual_seed(0)
    policy = Actor(d, m, (8, 8), layer_norm=True)
    world = World(DiffusionDynamics(d, m, (8,), steps=3), RewardModel(d, m, (8,)), TwinCritic(d, m, (8,)), 0.9)
    for module in (policy, world.dynamics, world.reward, world.critic):
        module.double()
        shake(module)
    return policy, world


OPTIONS = dict(horizon=2, particles=4, lr=1e-2)


@pytest.mark.parametrize("batch", [None, 3])
def test_a_gate_that_lets_everything_through_changes_nothing(setup, batch):
    state = torch.randn(*([3] if batch else []), d).double()
    options = dict(horizon=2, particles=300, lr=1e-2, updates=2)
    free, gated = (MPC(*setup, MPCConfig(**options, **more), batch=batch) for more in ({}, {"min_signal": 1e-12}))
    for _ in range(4):
        expected, action = free.act(state), gated.act(state)
        trust = gated.last.trust
        assert trust.particles.shape == gated.last.gradient_norm.shape == ((2, 3) if batch else (2,))
        assert (trust.particles == 300).all()
        torch.testing.assert_close(action, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gated.last.objective, free.last.objective, rtol=1e-10, atol=1e-12)
        assert gated.last.accepted.all()
        assert not trust.held.any()


@pytest.mark.parametrize("batch", [None, 3])
def test_a_gate_that_lets_nothing_through_leaves_every_bit(setup, batch):
    control = MPC(*setup, MPCConfig(**OPTIONS, min_signal=1e12, max_particles=13), batch=batch)
    start = parameters(control.policy)
    state = torch.randn(*([3] if batch else []), d).double()
    action = control.act(state)
    trust = control.last.trust
    assert same(parameters(control.policy), start)
    torch.testing.assert_close(action, setup[0](state).detach())
    assert (trust.particles == 12).all(), "4, 8, and as many fours as fit in 13"
    assert trust.held.all()
    assert not control.last.accepted.any()
    assert (trust.snr < 1e12).all()


def test_rows_are_gated_one_by_one(setup):
    """A bound between the rows' ratios: one row steps at once, others after more particles, or never."""
    policy, world = setup
    states = torch.randn(6, d).double()
    ratios = []
    for bound in (1e-9, 1e9):
        control = MPC(policy, world, MPCConfig(**OPTIONS, min_signal=bound, max_particles=16), batch=6)
        control.act(states)
        ratios.append(control.last.trust.snr[0])
    bound = float(ratios[1].median())
    control = MPC(policy, world, MPCConfig(**OPTIONS, min_signal=bound, max_particles=16), batch=6)
    start = parameters(control.policy)
    control.act(states)
    step, trust = control.last, control.last.trust
    assert 0 < step.accepted.sum() < 6
    assert torch.equal(step.accepted, trust.snr >= bound)
    assert torch.equal(step.accepted, ~trust.held)
    assert (trust.particles[trust.held] == 16).all()
    assert len(set(trust.particles[0].tolist())) > 1
    for k, p in control.policy.named_parameters():
        moved = (p != start[k]).flatten(1).any(1)
        assert not moved[trust.held[0]].any()
    assert torch.equal(control.drift() > 0, step.accepted[0])


def test_a_gated_step_goes_along_the_gradient_of_all_its_particles(setup):
    """The noise of the later draws follows that of the first one in the generator's stream."""
    policy, world = setup
    state = torch.randn(d).double()
    control = MPC(policy, world, MPCConfig(**OPTIONS, min_signal=1e-12, max_particles=64, seed=3))
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
    control = MPC(policy, bad, MPCConfig(horizon=1, particles=4, lr=1e-2, min_signal=1e9), batch=3)
    start = parameters(control.policy)
    control.act(states)
    assert same(parameters(control.policy), start)
    assert control.last.trust.held.tolist() == [[i != poison for i in range(3)]]
    assert control.last.rejected.tolist() == [[i == poison for i in range(3)]]
    assert control.last.made.all()
    assert control.last.trust.particles.tolist() == [[4 if i == poison else 16 for i in range(3)]]


@pytest.mark.parametrize("step", ["normalised", "fisher", "gauss-newton"])
def test_no_step_moves_a_row_that_is_not_finite(setup, step):
    policy, world = setup
    bad = World(world.dynamics, lambda s, a: torch.where(s[..., 0] > 40, torch.nan, a.sum(-1)), world.critic, 0.9)
    states = torch.randn(3, d).double()
    states[1, 0] = 50.0
    control = MPC(policy, bad, MPCConfig(horizon=1, particles=4, lr=1e-2, step=step), batch=3)
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
        control = MPC(policy, scaled, MPCConfig(horizon=2, particles=3, lr=0.03, step="normalised"), batch=3)
        control.act(states)
        torch.testing.assert_close(control.drift(), torch.full((3,), 0.03).double())
        found.append(parameters(control.policy))
    for k in found[0]:
        torch.testing.assert_close(found[0][k], found[1][k])


def test_a_fisher_step_changes_the_visited_actions_by_at_most_lr(setup):
    """To first order, in root mean square over the states that its own noise visits."""
    policy, world = setup
    states = torch.randn(2, d).double()
    control = MPC(policy, world, MPCConfig(horizon=2, particles=5, lr=1e-4, step="fisher", damping=1e-3, seed=1), batch=2)
    noise = torch.randn(2, 5, 2, *world.dynamics.noise_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = linearize(BatchedPolicy(policy, 2), world, states, noise)
    control.act(states)
    visited = before.states.flatten(1, 2)
    change = control.policy(visited) - before.actions.flatten(1, 2)
    size = change.square().sum(-1).mean(-1).sqrt()
    assert (size <= 1e-4 * 1.001).all()
    assert (size >= 0.3e-4).all(), "with little damping nearly all of it"


@pytest.mark.parametrize("batch", [None, 4])
def test_the_horizon_is_what_the_growth_allows(setup, batch):
    policy, world = setup
    states = torch.randn(batch or 1, d).double()
    noise = torch.randn(batch or 1, 6, 4, *world.dynamics.noise_shape, dtype=torch.float64)
    unit = world.dynamics.state_std
    mean = state_growth(BatchedPolicy(policy, batch or 1), world, states, noise, unit=unit).mean(1)
    bound = max(1.0, float(mean[:, 2].median()))
    config = MPCConfig(horizon=4, particles=3, lr=1e-2, max_growth=bound, growth_particles=200, growth_every=3)
    control = MPC(policy, world, config, batch=batch)
    state = states if batch else states[0]
    control.act(state)
    horizon = control.last.trust.horizon
    many = torch.randn(batch or 1, 200, 4, *world.dynamics.noise_shape, dtype=torch.float64)
    growth = state_growth(BatchedPolicy(policy, batch or 1), world, states, many, unit=unit).mean(1)
    for h, row in zip(horizon.reshape(-1).tolist(), growth, strict=True):
        assert (row[: h + 1] <= bound * 1.1).all()
        assert h == 4 or row[h + 1] >= bound * 0.9
    assert torch.isfinite(control.last.objective).all()


def test_rows_with_their_own_horizons_act_as_alone(setup):
    policy, world = setup
    control = MPC(policy, world, MPCConfig(horizon=3, particles=2, lr=1e-2, max_growth=1e9, growth_every=100), batch=3)
    states = torch.randn(3, d).double()
    control.act(states)
    control.reset()
    control.turns.horizon[:] = torch.tensor([0, 3, 1])
    state = control.generator.get_state()
    control.act(states)
    generator = torch.Generator()
    generator.set_state(state)
    noise = torch.randn(3, 2, 3, *world.dynamics.noise_shape, generator=generator, dtype=torch.float64)
    assert control.last.trust.horizon.tolist() == [0, 3, 1]
    for n, h in enumerate([0, 3, 1]):
        g = policy_gradient(policy, world, states[n], noise[n, :, :h])
        torch.testing.assert_close(control.last.objective[0, n], g.value, rtol=1e-10, atol=1e-12)
        for k, p in control.policy.named_parameters():
            expected = dict(policy.named_parameters())[k].detach() + 1e-2 * g.gradient[k]
            torch.testing.assert_close(p[n].detach(), expected, rtol=1e-9, atol=1e-11)


def test_growth_is_measured_every_so_many_thoughts(setup, monkeypatch):
    calls = []
    real = controller.growth_of
    monkeypatch.setattr(controller, "growth_of", lambda p, unit: calls.append(p.N) or real(p, unit))
    control = MPC(*setup, MPCConfig(**OPTIONS, max_growth=1e9, growth_every=3, think_every=2), batch=2)
    for _ in range(12):
        control.act(np.zeros((2, d)))
    assert calls == [2, 2], "thoughts at 0, 2, 4, …; growth at 0 and 6"
    control.new_episode([1])
    control.act(np.zeros((2, d)))
    assert calls == [2, 2, 2], "row 1 begins, and for row 0 it is the 13th call, the 7th thought"
    control.new_episode([0])
    control.act(np.zeros((2, d)))
    assert calls[-1] == 1, "row 0 alone"


@pytest.mark.parametrize("carry", ["episode", "step"])
def test_thinking_every_third_time(setup, carry):
    config = MPCConfig(horizon=1, particles=2, lr=1e-2, carry=carry, think_every=3)
    control = MPC(*setup, config)
    states = torch.randn(7, d).double()
    drifts = []
    for i, s in enumerate(states):
        before = parameters(control.policy)
        action = control.act(s)
        thought = bool(control.last.trust.thought)
        assert thought == (i % 3 == 0)
        assert control.last.objective.shape == ((1,) if thought else (0,))
        torch.testing.assert_close(action, control.policy(s).detach())
        if not thought:
            assert same(parameters(control.policy), before), "in between the improved policy acts"
        drifts.append(float(control.drift()))
    assert min(drifts) > 0
    control.new_episode()
    control.act(states[0])
    assert control.last.trust.thought, "an episode begins with a thought"


def test_rows_think_in_their_own_turn(setup):
    control = MPC(*setup, MPCConfig(horizon=1, particles=2, lr=1e-2, think_every=2), batch=3)
    states = torch.randn(3, d).double()
    control.act(states)
    control.new_episode([2])
    before = parameters(control.policy)
    control.act(states)
    assert control.last.trust.thought.tolist() == [False, False, True]
    assert (control.drift() > 0).all()
    assert all(torch.equal(p[:2], before[k][:2]) for k, p in control.policy.named_parameters())
    assert torch.isnan(control.last.objective[0]).tolist() == [True, True, False]
    assert control.last.accepted.tolist() == [[False, False, True]]
    assert control.last.trust.particles.tolist() == [[0, 0, 2]]
    assert control.last.made.tolist() == [[False, False, True]]
    assert not control.last.rejected.any()


@pytest.mark.parametrize("batch", [None, 2])
def test_it_continues_from_its_state_dict(setup, batch):
    config = MPCConfig(**OPTIONS, think_every=2, max_growth=3.0, growth_every=2, min_signal=0.5, max_particles=8)
    states = torch.randn(7, *([2] if batch else []), d).double()
    whole = MPC(*setup, config, batch=batch)
    expected = [whole.act(s) for s in states]
    first = MPC(*setup, config, batch=batch)
    for s in states[:3]:
        first.act(s)
    second = MPC(*setup, config, batch=batch)
    second.load_state_dict(first.state_dict())
    for s, action in zip(states[3:], expected[3:], strict=True):
        assert torch.equal(second.act(s), action)


def test_all_of_it_together_keeps_a_deadline(setup):
    options = dict(think_every=2, max_growth=3.0, min_signal=0.5, step="fisher", trust_radius=0.1, max_action_change=0.2)
    control = MPC(*setup, MPCConfig(**OPTIONS, updates=10**6, deadline_ms=60, **options), batch=2)
    control.warm_up()
    for _ in range(3):
        control.act(np.zeros((2, d)))
    assert len(control.last.objective) < 10**6
    assert (control.drift() <= 0.1 + 1e-9).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": "newton"}, "step: expected one of 'plain', 'normalised', 'fisher', 'gauss-newton', got 'newton'"),
        ({"damping": 0.0}, "damping: expected a positive number"),
        ({"think_every": 0}, "think_every: expected an integer >= 1, got 0"),
        ({"growth_every": 0}, "growth_every: expected an integer >= 1"),
        ({"growth_particles": 0}, "growth_particles: expected an integer >= 1"),
        ({"max_growth": 0.5}, "max_growth: expected at least 1, the growth over no step, got 0.5"),
        ({"max_growth": math.nan}, "max_growth: expected at least 1"),
        ({"min_signal": -1.0}, "min_signal: expected a positive number"),
        ({"min_signal": 1.0, "particles": 1}, "particles: expected at least 2 with min_signal"),
        ({"max_particles": 8}, "max_particles: expected an integer >= 16, got 8"),
        ({"step": "normalised", "max_grad_norm": 1.0}, "max_grad_norm: expected None with step='normalised'"),
        ({"step": "fisher", "method": "forward"}, 'expected "auto" or "adjoint" and "return" with step='),
        ({"step": "gauss-newton", "objective": "decoupled-critic"}, 'expected "auto" or "adjoint" and "return" with step='),
    ],
)
def test_bad_settings_say_what_was_expected(options, message):
    with pytest.raises(ValueError, match=message):
        MPCConfig(**options)
