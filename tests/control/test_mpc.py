"""Algorithm 1 and the controller around it."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jacrec import (
    MPC,
    Actor,
    Autograd,
    BatchedPolicy,
    DiffusionDynamics,
    MPCConfig,
    RewardModel,
    TwinCritic,
    World,
    imagined_return,
    mpc_update,
    policy_gradient,
)
from jacrec.engine.methods import METHODS
from tests.conftest import property_cases
from tests.strategies import ForeignDynamics, shake

d, m = 4, 2


def parameters(policy):
    return {k: p.detach().clone() for k, p in policy.named_parameters()}


@pytest.fixture
def setup():
    torch.manual_seed(0)
    policy = Actor(d, m, (8, 8))
    world = World(DiffusionDynamics(d, m, (8,), steps=3), RewardModel(d, m, (8,)), TwinCritic(d, m, (8,)), 0.9)
    for module in (policy, world.dynamics, world.reward, world.critic):
        module.double()
        shake(module)
    return policy, world


def test_update_is_plain_ascent_along_autograds_gradient(setup):
    policy, world = setup
    state, noise = torch.randn(d).double(), torch.randn(3, 2, *world.dynamics.noise_shape).double()
    expected = parameters(policy)
    objective = []
    probe = Actor(d, m, (8, 8)).double()
    for _ in range(3):
        probe.load_state_dict(expected)
        g = policy_gradient(probe, world, state, noise, method=Autograd())
        objective.append(g.value)
        expected = {k: p + 1e-2 * g.gradient[k] for k, p in expected.items()}
    step = mpc_update(policy, world, state, noise=noise, updates=3, lr=1e-2)
    for k, p in policy.named_parameters():
        torch.testing.assert_close(p.detach(), expected[k], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(step.objective, torch.stack(objective), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(step.action, policy(state).detach())
    assert step.accepted.tolist() == [True] * 3
    assert (step.objective.diff() > 0).all()


def test_same_generator_same_bits(setup):
    policy, world = setup
    state, start = torch.randn(d).double(), parameters(setup[0])
    results = []
    for _ in range(2):
        policy.load_state_dict(start)
        step = mpc_update(policy, world, state, horizon=2, particles=3, generator=torch.Generator().manual_seed(5))
        results.append((step, parameters(policy)))
    assert torch.equal(results[0][0].objective, results[1][0].objective)
    assert all(torch.equal(results[0][1][k], results[1][1][k]) for k in start)


def test_no_updates_is_the_policy_itself(setup):
    policy, world = setup
    state = torch.randn(2, d).double()
    step = mpc_update(policy, world, state, updates=0)
    torch.testing.assert_close(step.action, policy(state).detach())
    assert step.objective.shape == (0, 2)


def test_horizon_zero_ascends_the_critic_alone(setup):
    policy, world = setup
    state = torch.randn(d).double()
    blind = World(ForeignDynamics(d, m).double(), lambda s, a: s.sum(-1) * torch.nan, world.critic, 0.9)
    before = imagined_return(policy, blind, state, torch.zeros(1, 0, 2).double())
    torch.testing.assert_close(before, world.critic(state, policy(state)).detach())
    step = mpc_update(policy, blind, state, horizon=0, particles=1, lr=1e-3)
    assert step.accepted.all()
    assert imagined_return(policy, blind, state, torch.zeros(1, 0, 2).double()) > before


@pytest.mark.parametrize("poison", ["reward", "dynamics", "gradient"])
def test_a_row_that_is_not_finite_is_rejected_whole(setup, poison):
    """One particle of one of three rows goes bad: that row keeps every bit, the others learn, all act."""
    policy, world = setup
    policy = BatchedPolicy(policy, 3)
    start = parameters(policy)
    state = torch.randn(3, d).double()
    state[1, 0] = 50.0  # what the bad functions look for

    class Dynamics(ForeignDynamics):
        def forward(self, state, action, noise):
            following = super().forward(state, action, noise)
            bad = (state[..., :1] > 40) & (noise[..., :1] > 0)
            return following * torch.where(bad, torch.inf, 1.0) if poison == "dynamics" else following

    def reward(s, a):
        bad = s[..., 0] > 40
        if poison == "reward":
            return torch.where(bad, torch.nan, s.sum(-1) + a.sum(-1))
        if poison == "gradient":  # a finite value with an infinite slope
            zero = (a - a.detach()).square().sum(-1)
            return a.sum(-1) + torch.sqrt(torch.where(bad, zero, 1.0))
        return a.sum(-1)

    bad_world = World(Dynamics(d, m).double(), reward, world.critic, 0.9)
    step = mpc_update(policy, bad_world, state, horizon=2, particles=8, lr=1e-2, generator=torch.Generator().manual_seed(0))
    assert step.accepted.tolist() == [[True, False, True]]
    assert torch.isfinite(step.action).all()
    for k, p in policy.named_parameters():
        assert torch.equal(p[1], start[k][1])
        assert torch.isfinite(p).all()
    assert any(not torch.equal(p[0], start[k][0]) for k, p in policy.named_parameters())


def test_shared_parameters_stand_and_fall_together(setup):
    policy, world = setup
    start = parameters(policy)
    bad = World(world.dynamics, lambda s, a: torch.where(s[..., 0] > 40, torch.nan, a.sum(-1)), world.critic, 0.9)
    state = torch.zeros(2, d).double()
    state[1, 0] = 50.0
    step = mpc_update(policy, bad, state, horizon=1, particles=2)
    assert step.accepted.tolist() == [False]
    assert all(torch.equal(p, start[k]) for k, p in policy.named_parameters())
    assert step.action.shape == (2, m)


def test_gradient_clipping_bounds_the_step_of_each_row(setup):
    policy, world = setup
    policy = BatchedPolicy(policy, 3)
    start = parameters(policy)
    step = mpc_update(policy, world, torch.randn(3, d).double(), horizon=1, particles=2, lr=0.1, max_grad_norm=1e-3)
    moved = sum((p - start[k]).flatten(1).square().sum(1) for k, p in policy.named_parameters()).sqrt()
    torch.testing.assert_close(moved.detach(), torch.full((3,), 1e-4).double())
    assert (step.gradient_norm > 1e-3).all()


def test_controller_leaves_the_users_policy_alone_and_resets_rows(setup):
    policy, world = setup
    start = parameters(policy)
    control = MPC(policy, world, MPCConfig(horizon=1, particles=2, lr=1e-2), batch=3)
    actions = control.act(np.zeros((3, d)))
    assert actions.shape == (3, m)
    assert isinstance(actions, np.ndarray)
    assert all(torch.equal(p, start[k]) for k, p in policy.named_parameters())
    assert (control.drift() > 0).all()
    control.new_episode([1])
    assert (control.drift() > 0).tolist() == [True, False, True]
    control.new_episode(torch.tensor([True, False, True]))
    assert control.drift().tolist() == [0, 0, 0]


@pytest.mark.parametrize(("carry", "after_act", "after_episode"), [("episode", True, False), ("persist", True, True)])
def test_what_is_carried(setup, carry, after_act, after_episode):
    control = MPC(*setup, MPCConfig(horizon=1, particles=2, lr=1e-2, carry=carry))
    control.act(torch.zeros(d).double())
    assert (control.drift() > 0) == after_act
    control.new_episode()
    assert (control.drift() > 0) == after_episode
    control.reset()
    assert control.drift() == 0


def test_step_mode_starts_every_decision_from_the_pretrained_policy(setup):
    control = MPC(*setup, MPCConfig(horizon=0, particles=1, lr=1e-2, carry="step"))
    state = torch.zeros(d).double()
    first = control.act(state)
    assert torch.equal(control.act(state), first)
    carried = MPC(*setup, MPCConfig(horizon=0, particles=1, lr=1e-2))
    carried.act(state)
    assert not torch.equal(carried.act(state), first)


def test_batched_controller_acts_as_single_ones(setup):
    policy, world = setup
    states = torch.randn(3, d).double()
    noise = torch.randn(3, 2, 2, *world.dynamics.noise_shape).double()
    many = mpc_update(BatchedPolicy(policy, 3), world, states, noise=noise, lr=1e-2, updates=2)
    for n in range(3):
        alone = Actor(d, m, (8, 8)).double()
        alone.load_state_dict(policy.state_dict())
        one = mpc_update(alone, world, states[n], noise=noise[n], lr=1e-2, updates=2)
        torch.testing.assert_close(many.action[n], one.action, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(many.objective[:, n], one.objective, rtol=1e-12, atol=1e-13)


def test_trust_radius_holds_row_by_row(setup):
    control = MPC(*setup, MPCConfig(horizon=1, particles=2, lr=1.0, updates=3, trust_radius=0.01), batch=2)
    control.act(np.zeros((2, d)))
    torch.testing.assert_close(control.drift(), torch.full((2,), 0.01, dtype=torch.float64), rtol=1e-9, atol=0)


def test_a_real_deadline_ends_a_million_updates(setup):
    control = MPC(*setup, MPCConfig(horizon=1, particles=2, updates=10**6, lr=1e-3, deadline_ms=60))
    control.act(torch.zeros(d).double())
    assert 0 < len(control.last.objective) < 10**6


def test_best_so_far_takes_back_what_got_worse(setup):
    """A step so large that it overshoots the optimum: with a deadline, the parameters from before it answer."""
    policy, world = setup
    steep = World(world.dynamics, world.reward, lambda s, a: -(a - 0.2).square().sum(-1), 0.9)
    state, nothing = torch.zeros(d).double(), torch.zeros(1, 0, *world.dynamics.noise_shape).double()
    options = dict(horizon=0, particles=1, lr=1.0)
    measured = MPC(policy, steep, MPCConfig(updates=4, **options, deadline_ms=1e6))
    measured.act(state)
    objective = measured.last.objective
    assert objective[-1] < objective.max(), "the step was meant to overshoot"
    answer = imagined_return(measured.policy, steep, state, nothing)
    torch.testing.assert_close(answer, objective.max())
    without = MPC(policy, steep, MPCConfig(updates=4, **options))
    without.act(state)
    assert imagined_return(without.policy, steep, state, nothing) != answer


def test_controller_continues_from_its_state_dict(setup):
    config = MPCConfig(horizon=1, particles=2, lr=1e-2)
    states = torch.randn(4, d).double()
    whole = MPC(*setup, config)
    expected = [whole.act(s) for s in states]
    first = MPC(*setup, config)
    for s in states[:2]:
        first.act(s)
    second = MPC(*setup, config)
    second.load_state_dict(first.state_dict())
    for s, action in zip(states[2:], expected[2:], strict=True):
        assert torch.equal(second.act(s), action)


class Odd(torch.nn.Module):
    """A policy with a scalar, a tied and a frozen parameter."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(d, d), torch.nn.Linear(d, d)
        self.second.weight = self.first.weight
        self.last = torch.nn.Linear(d, m)
        self.gain = torch.nn.Parameter(torch.tensor(0.5))
        self.last.bias.requires_grad_(False)

    def forward(self, state):
        return torch.tanh(self.gain * self.last(self.second(torch.tanh(self.first(state)))))


@pytest.mark.parametrize("batched", [False, True])
def test_scalar_tied_and_frozen_parameters(setup, batched):
    policy = Odd().double()
    if batched:
        policy = BatchedPolicy(policy, 3)
    start = parameters(policy)
    assert "second.weight" not in start
    g = policy_gradient(policy, setup[1], torch.ones(3, d).double(), torch.zeros(3, 1, 1, 4, d).double())
    step = mpc_update(policy, setup[1], torch.ones(3, d).double(), noise=torch.zeros(3, 1, 1, 4, d).double(), lr=0.1)
    moved = {k: p.detach() - start[k] for k, p in policy.named_parameters()}
    assert not moved.pop("last.bias").any(), "frozen parameters stay"
    for k, change in moved.items():
        torch.testing.assert_close(change, 0.1 * g.gradient[k], rtol=1e-9, atol=1e-12)
    rows = 3 if batched else 1
    norm = sum(g.gradient[k].reshape(rows, -1).square().sum(1) for k in moved).sqrt()
    torch.testing.assert_close(step.gradient_norm.reshape(-1), norm)
    expected = policy(torch.ones(3, 1, d).double()) if batched else policy(torch.ones(3, d).double()).unsqueeze(1)
    torch.testing.assert_close(step.action, expected.squeeze(1).detach())


def test_nothing_to_train_is_an_error(setup):
    policy, world = setup
    with pytest.raises(ValueError, match="expected parameters with requires_grad=True to improve, got none"):
        mpc_update(policy.requires_grad_(False), world, torch.zeros(d).double())


def test_policies_see_one_batch_axis(setup):
    """BatchNorm in evaluation mode and Flatten take (B, d) and nothing else."""
    layers = torch.nn.Flatten(), torch.nn.BatchNorm1d(d), torch.nn.Linear(d, m), torch.nn.Tanh()
    policy = torch.nn.Sequential(*layers).double().eval()
    for state in (torch.ones(d).double(), torch.ones(3, d).double()):
        assert mpc_update(policy, setup[1], state, horizon=1, particles=2).accepted.all()
        control = MPC(policy, setup[1], MPCConfig(horizon=1, particles=2), batch=None if state.dim() == 1 else 3)
        assert control.act(state).shape == (*state.shape[:-1], m)


@pytest.mark.parametrize("rows", [[], (), torch.zeros(3, dtype=torch.bool), np.array([], dtype=int)])
def test_no_rows_is_a_fine_set_of_rows(setup, rows):
    control = MPC(*setup, MPCConfig(horizon=0, particles=1, lr=1e-2), batch=3)
    control.act(np.zeros((3, d)))
    control.new_episode(rows)
    assert (control.drift() > 0).all()


@pytest.mark.parametrize("rows", [[3], [-1], [0.5], torch.ones(2, dtype=torch.bool)])
def test_rows_that_are_not_there(setup, rows):
    with pytest.raises(ValueError, match=r"rows: expected indices in 0\.\.2 or a mask of shape \(3,\)"):
        MPC(*setup, batch=3).reset(rows)


def test_a_state_dict_of_another_controller_changes_nothing(setup):
    config = MPCConfig(horizon=0, particles=1, lr=1e-2)
    control, single = MPC(*setup, config, batch=3), MPC(*setup, config)
    control.act(np.zeros((3, d)))
    before = parameters(control.policy)
    with pytest.raises(ValueError, match=r"expected shape \(3, 8, 4\), got \(8, 4\); same policy and batch=N"):
        control.load_state_dict(single.state_dict())
    partial = single.state_dict()
    del partial["generator"]
    with pytest.raises(ValueError, match="state_dict: expected the entries"):
        single.load_state_dict(partial)
    assert all(torch.equal(p, before[k]) for k, p in control.policy.named_parameters())


def test_a_generator_has_to_be_one(setup):
    with pytest.raises(ValueError, match=r"generator: expected a torch\.Generator on cpu like the state, got int"):
        mpc_update(*setup, torch.zeros(d).double(), generator=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"carry": "never"}, "carry: expected one of 'episode', 'persist', 'step', got 'never'"),
        ({"method": "fast"}, "method: expected one of"),
        ({"horizon": -1}, "horizon: expected an integer >= 0, got -1"),
        ({"particles": 0}, "particles: expected an integer >= 1, got 0"),
        ({"trust_radius": 0.0}, "trust_radius: expected a positive number, got 0.0"),
        ({"deadline_ms": -3}, "deadline_ms: expected a positive number"),
        ({"lr": -1.0}, "lr: expected a finite step size >= 0"),
        ({"lr": float("nan")}, "lr: expected a finite step size >= 0"),
        ({"max_grad_norm": -0.1}, "max_grad_norm: expected a positive number"),
        ({"max_action_change": 0.0}, "max_action_change: expected a positive number"),
    ],
)
def test_bad_settings_say_what_was_expected(options, message):
    with pytest.raises(ValueError, match=message):
        MPCConfig(**options)


def test_the_help_names_every_method():
    source = inspect.getsource(MPCConfig)
    help_text = source[source.index("method: str") : source.index("seed: int")]
    assert all(f'"{name}"' in help_text for name in METHODS)
    assert all(MPCConfig(method=name).method == name for name in METHODS)


@given(st.floats(1e-4, 0.5), st.floats(1e-3, 30.0), st.booleans(), st.sampled_from(["episode", "step"]))
@property_cases(0.01, 12)
def test_actions_stay_near_the_pretrained_policys(bound, lr, batched, carry):
    torch.manual_seed(0)
    policy = Actor(d, m, (8, 8)).double()
    world = World(DiffusionDynamics(d, m, (8,), steps=3), RewardModel(d, m, (8,)), TwinCritic(d, m, (8,)), 0.9)
    for module in (policy, world.dynamics, world.reward, world.critic):
        module.double()
        shake(module)
    config = MPCConfig(horizon=1, particles=2, lr=lr, updates=2, carry=carry)
    batch = 3 if batched else None
    free = MPC(policy, world, config, batch=batch)
    held, loose = (MPC(policy, world, replace(config, max_action_change=x), batch=batch) for x in (bound, 1e9))
    for state in torch.randn(4, *([3] if batched else []), d).double():
        base = policy(state).detach()
        before, action, far = (control.act(state) for control in (free, held, loose))
        assert torch.equal(far, before), "a bound that nothing reaches changes no bit"
        assert (action - base).abs().max() <= bound + 1e-12
        inside = (before - base).abs() <= bound
        assert torch.equal(action[inside], before[inside])
        torch.testing.assert_close(action, base + (before - base).clamp(-bound, bound), rtol=1e-12, atol=1e-12)
        assert torch.equal(held.last.action, action)


def test_the_bound_is_around_the_pretrained_policy_that_was_loaded(setup):
    policy, world = setup
    other = Actor(d, m, (8, 8)).double()
    shake(other)
    config = MPCConfig(horizon=0, particles=1, lr=10.0, max_action_change=1e-3)
    source, control = MPC(other, world, config), MPC(policy, world, config)
    control.load_state_dict(source.state_dict())
    state = torch.randn(d).double()
    action = control.act(state)
    assert (action - other(state)).abs().max() <= 1e-3 + 1e-12
    assert (action - policy(state)).abs().max() > 1e-3
    assert torch.equal(action, source.act(state))
