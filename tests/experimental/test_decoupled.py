"""The decoupled gradient against autograd of the surrogate written out, with detach() where something is held fixed."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
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
    policy_gradient,
)
from jacrec.engine.rollout import noise_like
from jacrec.experimental.decoupled import Decoupled, decoupled_gradient
from tests.conftest import property_cases
from tests.oracles import relative_error, well_posed
from tests.strategies import ForeignDynamics, cases, shake


def one_surrogate(policy, frozen, world, state, noise, local, weights):
    """S of one state (d,) and one noise sequence (H, *noise_shape); policy, frozen: (d,) -> (m,), the latter held fixed."""
    H = noise.shape[0]
    c = [world.discount**j if weights == "discounted" else 1.0 for j in range(H + 1)]
    s, total = state, torch.zeros((), dtype=state.dtype)
    for j in range(H + 1):
        s = s.detach()
        a = policy(s)
        if local == "critic" or j == H:
            value = world.critic(s, a)
        else:
            following = world.dynamics(s, a, noise[j])
            value = world.reward(s, a) + world.discount * world.critic(following, frozen(following))
        total = total + c[j] / sum(c) * value
        s = world.dynamics(s, a, noise[j]) if j < H else s
    return total


def looped_surrogate(policy, world, state, noise, local, weights):
    """S (N,) and its gradient, one state and one particle at a time."""
    batched = isinstance(policy, BatchedPolicy)
    module = policy.template if batched else policy
    own = {name: p.detach() for name, p in policy.named_parameters()}
    values, rows = [], []
    for n in range(state.shape[0]):
        fixed = {name: p[n] if batched else p for name, p in own.items()}
        live = {name: p.clone().requires_grad_() for name, p in fixed.items()}

        def acting(parameters):
            return lambda s: torch.func.functional_call(module, parameters, (s[None],))[0]

        terms = [one_surrogate(acting(live), acting(fixed), world, state[n], e, local, weights) for e in noise[n]]
        value = torch.stack(terms).mean()
        grads = torch.autograd.grad(value, list(live.values()), allow_unused=True) if value.requires_grad else [None] * len(own)
        values.append(value.detach())
        rows.append({k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(live.items(), grads, strict=True)})
    stacked = {k: torch.stack([row[k] for row in rows]) for k in own}
    return torch.stack(values), stacked if batched else {k: g.mean(0) for k, g in stacked.items()}


@property_cases(0.1)
@given(
    case=cases(max_H=3, max_M=3, anchored=False),
    local=st.sampled_from(["critic", "one-step"]),
    weights=st.sampled_from(["discounted", "uniform"]),
)
def test_equals_autograd_of_the_surrogate(case, local, weights):
    policy, world, state, noise = case.build()
    assume(well_posed(policy, world, state, noise))
    rows = (state[None], noise[None]) if case.single else (state, noise)
    value, expected = looped_surrogate(policy, world, *rows, local, weights)
    got = decoupled_gradient(policy, world, state, noise, local=local, weights=weights, kernel="plain")
    torch.testing.assert_close(got.value, value[0] if case.single else value, rtol=1e-12, atol=1e-12)
    assert relative_error(got.gradient, expected) <= 1e-12


@property_cases(0.02)
@given(case=cases(max_H=0, anchored=False))
def test_without_imagination_it_is_the_ascent_on_the_critic(case):
    problem = case.build()
    assume(well_posed(*problem))
    expected = policy_gradient(*problem, method=Autograd())
    for local in ("critic", "one-step"):
        got = decoupled_gradient(*problem, local=local)
        torch.testing.assert_close(got.value, expected.value, rtol=1e-12, atol=1e-12)
        assert relative_error(got.gradient, expected.gradient) <= 1e-12


@pytest.fixture
def setup():
    torch.manual_seed(0)
    policy = Actor(4, 2, (8, 8))
    parts = DiffusionDynamics(4, 2, (8,), steps=3), RewardModel(4, 2, (8,)), TwinCritic(4, 2, (8,))
    for module in (policy, *parts):
        module.double()
        shake(module)
    return policy, World(*parts, 0.9)


@pytest.mark.parametrize("local", ["critic", "one-step"])
def test_one_step_of_imagination_is_worth_the_gradient_through_it(setup, local):
    """With H = 1 the one-step form is the return's gradient at s_t, where the critic's own ascent is missing from it."""
    policy, world = setup
    state, noise = torch.randn(4).double(), torch.randn(3, 1, *world.dynamics.noise_shape).double()
    through = policy_gradient(policy, world, state, noise, method=Autograd())
    got = decoupled_gradient(policy, world, state, noise, local=local)
    # the return's last action is improved by γ Q_a, at the same states; in the surrogate by c_1 Q_a, c_0 before it
    halves = {k: g * (1 + world.discount) for k, g in got.gradient.items()}
    difference = relative_error(halves, through.gradient)
    assert difference <= 1e-12 if local == "one-step" else difference > 1e-3


@pytest.mark.parametrize("local", ["critic", "one-step"])
def test_compiled_transitions_change_nothing(setup, local):
    policy, world = setup
    policies = BatchedPolicy(policy, 3)
    shake(policies, 0.05)
    state, noise = torch.randn(3, 4).double(), torch.randn(3, 5, 2, *world.dynamics.noise_shape).double()
    plain = decoupled_gradient(policies, world, state, noise, local=local, kernel="plain")
    fused = decoupled_gradient(policies, world, state, noise, local=local, kernel="fused")
    torch.testing.assert_close(fused.value, plain.value, rtol=1e-12, atol=1e-12)
    assert relative_error(fused.gradient, plain.gradient) <= 1e-12


def test_what_cannot_be_is_refused(setup):
    policy, world = setup
    with pytest.raises(ValueError, match=r"Decoupled.local: expected one of 'critic', 'one-step', got 'two-step'"):
        Decoupled("two-step")
    with pytest.raises(ValueError, match=r"Decoupled.weights"):
        Decoupled(weights="none")
    foreign = replace(world, dynamics=ForeignDynamics(4, 2).double())
    state, noise = torch.randn(4).double(), torch.randn(3, 1, 2).double()
    with pytest.raises(ValueError, match='kernel="fused"'):
        decoupled_gradient(policy, foreign, state, noise, kernel="fused")


def test_the_transitions_are_compiled_beside_another_reward(setup):
    policy, world = setup
    world = replace(world, reward=lambda s, a: s.square().sum(-1) - a.sum(-1))
    state, noise = torch.randn(4).double(), torch.randn(3, 1, *world.dynamics.noise_shape).double()
    plain, fused = (decoupled_gradient(policy, world, state, noise, kernel=kernel) for kernel in ("plain", "fused"))
    torch.testing.assert_close(fused.value, plain.value, rtol=1e-12, atol=1e-12)
    assert relative_error(fused.gradient, plain.gradient) <= 1e-12


def test_the_controller_ascends_it(setup):
    policy, world = setup
    config = MPCConfig(horizon=2, particles=4, updates=2, lr=1e-2)
    mpc = MPC(policy, world, config, update=Decoupled("one-step", "uniform"))
    state = torch.randn(4).double()
    noise = noise_like(world, state, 4, 2, torch.Generator().manual_seed(0))
    mpc.act(state)
    objective = []
    for _ in range(2):
        estimate = decoupled_gradient(policy, world, state, noise, local="one-step", weights="uniform")
        objective.append(estimate.value)
        with torch.no_grad():
            for name, p in policy.named_parameters():
                p.add_(estimate.gradient[name], alpha=1e-2)
    assert mpc.last is not None
    torch.testing.assert_close(mpc.last.objective, torch.stack(objective), rtol=1e-12, atol=1e-13)
    for a, b in zip(mpc.policy.parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_an_objective_is_not_a_method(setup):
    policy, world = setup
    state, noise = torch.randn(4).double(), torch.randn(3, 1, *world.dynamics.noise_shape).double()
    with pytest.raises(ValueError, match=r"method: expected .* got Decoupled.*MPC\(..., update=...\)"):
        policy_gradient(policy, world, state, noise, method=Decoupled())
    with pytest.raises(ValueError, match=r"method: expected .auto. .* got .adjoint."):
        MPC(policy, world, MPCConfig(method="adjoint"), update=Decoupled())
