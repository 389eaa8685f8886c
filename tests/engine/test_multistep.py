"""The multi-step world model: causality, its trajectory in the loop, and the gradient through it against autograd."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from jacrec import (
    MPC,
    Actor,
    Adjoint,
    Auto,
    Autograd,
    BatchedPolicy,
    Forward,
    MPCConfig,
    MultiStep,
    MultiStepDynamics,
    RewardModel,
    TwinCritic,
    World,
    imagined_return,
    linearize,
    policy_gradient,
)
from jacrec.engine.multistep import multistep_growth
from jacrec.engine.shapes import problem as checked
from jacrec.evaluation.probes import jacobian_growth
from jacrec.experimental import Decoupled, FisherStep
from jacrec.models.io import load_module, save_module
from jacrec.planners import Planner
from tests.conftest import property_cases
from tests.oracles import last_term, penalty, relative_error, well_posed
from tests.strategies import architectures, cases, shake


def plain_step(f, j, state, actions, noise):
    """s_j of one state (d,) after actions a_0 … a_{j-1}, noise (H, *noise_shape): the whole input row written out."""
    masked = [actions[i] if i < j else torch.zeros_like(actions[0]) for i in range(len(actions))]
    masked += [torch.zeros_like(actions[0])] * (f.horizon - len(actions))
    which = torch.nn.functional.one_hot(torch.tensor(j - 1), f.horizon).to(state)
    y = f.mlp(torch.cat([(state - f.state_mean) / f.state_std, *masked, which]))
    x = y[: f.state_dim]
    if f.stochastic:
        x = x + torch.exp(-1.5 + 2.5 * torch.tanh(y[f.state_dim :])) * noise[:j, 0].sum(0) / j**0.5
    return state + f.out_mean[j - 1] + f.out_std[j - 1] * x


def one_return(policy, world, state, noise, sweeps):
    """L of one state and one noise sequence: every row of every sweep."""
    H = noise.shape[0]
    s = [state] * (H + 1)
    for _ in range(sweeps):
        actions = [policy(x) for x in s[:H]]
        s = [state, *(plain_step(world.dynamics, j, state, actions, noise) for j in range(1, H + 1))]
    total = torch.zeros((), dtype=state.dtype)
    for j in range(H):
        a = policy(s[j])
        total = total + world.discount**j * (world.reward(s[j], a) - penalty(world, s[j], a))
    return total + world.discount**H * last_term(policy, world, s[H])


def looped_gradient(policy, world, state, noise, sweeps):
    """Ĵ (N,) and its gradient, one state and one particle at a time."""
    batched = isinstance(policy, BatchedPolicy)
    module = policy.template if batched else policy
    own = {name: p.detach() for name, p in policy.named_parameters()}
    values, rows = [], []
    for n in range(state.shape[0]):
        live = {name: (p[n] if batched else p).clone().requires_grad_() for name, p in own.items()}

        def act(s, live=live):
            return torch.func.functional_call(module, live, (s[None],))[0]

        value = torch.stack([one_return(act, world, state[n], e, sweeps) for e in noise[n]]).mean()
        grads = torch.autograd.grad(value, list(live.values()), allow_unused=True) if value.requires_grad else [None] * len(own)
        values.append(value.detach())
        rows.append({k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(live.items(), grads, strict=True)})
    stacked = {k: torch.stack([row[k] for row in rows]) for k in own}
    return torch.stack(values), stacked if batched else {k: g.mean(0) for k, g in stacked.items()}


@st.composite
def models(draw, H):
    """Keyword arguments of a model that reaches at least H steps."""
    return dict(
        horizon=max(1, H) + draw(st.integers(0, 2)),
        stochastic=draw(st.booleans()),
        sweeps=draw(st.none() | st.integers(1, max(1, H) + 1)),
        **draw(architectures()),
    )


@st.composite
def problems(draw, max_H=4, max_M=3, foreign=True):
    """policy, world with a multi-step model, state, noise."""
    case = draw(cases(max_H=max_H, max_M=max_M, foreign=foreign))
    options = draw(models(case.H))
    policy, world, state, noise = case.build()
    with torch.random.fork_rng():
        torch.manual_seed(case.seed)
        f = MultiStepDynamics(case.d, case.m, **options).double()
        shake(f)
        lead = noise.shape[: noise.dim() - len(world.dynamics.noise_shape)]
        noise = torch.randn(*lead, *f.noise_shape, dtype=torch.float64)
    return policy, replace(world, dynamics=f), state, noise


@property_cases(0.12)
@given(problem=problems())
def test_the_gradient_is_autograds(problem):
    policy, world, state, noise = problem
    assume(well_posed(*problem))
    H = noise.shape[-3]
    rows = (state[None], noise[None]) if state.dim() == 1 else (state, noise)
    value, expected = looped_gradient(policy, world, *rows, world.dynamics.passes(H))
    value = value[0] if state.dim() == 1 else value
    for method in (Auto(), MultiStep(), Autograd()):
        got = policy_gradient(*problem, method=method)
        torch.testing.assert_close(got.value, value, rtol=1e-12, atol=1e-12)
        assert relative_error(got.gradient, expected) <= 1e-12
    torch.testing.assert_close(imagined_return(*problem), value, rtol=1e-12, atol=1e-12)


@property_cases(0.03)
@given(problem=problems(), data=st.data())
def test_as_many_sweeps_as_steps_are_exact_and_fewer_as_far_as_they_went(problem, data):
    policy, world, state, noise = problem
    policy = policy.template if isinstance(policy, BatchedPolicy) else policy
    f, H = world.dynamics, noise.shape[-3]
    if state.dim() == 1:
        state, noise = state[None], noise[None]
    start = state[:, None].expand(-1, noise.shape[1], -1)

    def trajectory(sweeps):
        f.sweeps = sweeps
        return f.imagine(policy, start, noise)

    with torch.no_grad():
        exact = trajectory(None)
        again = f.predict(start, policy(exact[:, :, :H]), noise)  # it is the fixed point
        torch.testing.assert_close(exact[:, :, 1:], again, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(trajectory(max(H, 1)), exact, rtol=1e-12, atol=1e-12)
        p = data.draw(st.integers(1, max(H, 1)))
        some = trajectory(p)
        torch.testing.assert_close(some[:, :, : p + 1], exact[:, :, : p + 1], rtol=1e-12, atol=1e-12)


@property_cases(0.02)
@given(d=st.integers(1, 4), m=st.integers(1, 3), H=st.integers(1, 4), data=st.data(), seed=st.integers(0, 999))
def test_a_state_depends_on_the_actions_before_it_alone(d, m, H, data, seed):
    torch.manual_seed(seed)
    f = MultiStepDynamics(d, m, **data.draw(models(H))).double()
    shake(f)
    state, actions = torch.randn(d).double(), torch.randn(H, m).double()
    noise = torch.randn(H, *f.noise_shape).double()
    whole = f.predict(state, actions, noise)
    for j in range(1, H + 1):
        torch.testing.assert_close(whole[j - 1], plain_step(f, j, state, list(actions), noise), rtol=1e-12, atol=1e-12)
        shorter = f.predict(state, actions[:j], noise[:j])
        torch.testing.assert_close(whole[:j], shorter, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(f.predict(state, actions, noise, j), whole[j - 1 :], rtol=1e-12, atol=1e-12)
    changed = actions.clone()
    changed[-1] += 1.0
    assert torch.equal(f.predict(state, changed, noise)[:-1], whole[:-1])
    torch.testing.assert_close(f(state, actions[0], noise[0]), whole[0], rtol=1e-12, atol=1e-12)


def test_the_noise_of_a_path_is_standard_at_every_step_and_that_of_a_random_walk():
    f = MultiStepDynamics(1, 1, (4,), horizon=4, stochastic=True).double()
    unit = torch.eye(4, dtype=torch.float64)[:, :, None, None]  # each ε_i alone
    n = f.path_noise(unit)
    assert n is not None
    root = n.squeeze(-1)  # (i, j)
    j = torch.arange(1.0, 5.0, dtype=torch.float64)
    expected = torch.minimum(j[:, None], j).sqrt() / torch.maximum(j[:, None], j).sqrt()
    torch.testing.assert_close(root.mT @ root, expected)


@pytest.fixture
def setup():
    torch.manual_seed(0)
    parts = MultiStepDynamics(4, 2, (8,), horizon=3, stochastic=True), RewardModel(4, 2, (8,)), TwinCritic(4, 2, (8,))
    policy = Actor(4, 2, (8, 8))
    for module in (policy, *parts):
        module.double()
        shake(module)
    return policy, World(*parts, 0.9)


@pytest.mark.parametrize("sweeps", [None, 2])
def test_the_controller_thinks_in_it(setup, sweeps):
    policy, world = setup
    world.dynamics.sweeps = sweeps
    state = np.random.default_rng(0).standard_normal((3, 4))
    mpc = MPC(policy, world, MPCConfig(horizon=3, particles=6, updates=5, lr=1e-3), batch=3)
    other = MPC(policy, world, MPCConfig(horizon=3, particles=6, updates=5, lr=1e-3, method="autograd"), batch=3)
    np.testing.assert_allclose(mpc.act(state), other.act(state), rtol=1e-10)
    assert mpc.last is not None
    assert bool(mpc.last.accepted.all())
    assert bool((mpc.last.objective[-1] > mpc.last.objective[0]).all())


def test_what_it_cannot_serve_says_so(setup):
    policy, world = setup
    state, noise = torch.randn(4).double(), torch.randn(3, 2, 1, 4).double()
    for method in (Forward(), Adjoint(), Forward(sensitivities="dense")):
        with pytest.raises(ValueError, match="predicts all steps from the first state; use method=Auto"):
            policy_gradient(policy, world, state, noise, method=method)
    with pytest.raises(ValueError, match="expected a one-step world model"):
        linearize(policy, world, state, noise)
    far = torch.randn(3, 4, 1, 4).double()
    for method in (Auto(), Autograd()):
        with pytest.raises(ValueError, match=r"horizon: expected at most 3.*got 4; take a shorter horizon"):
            policy_gradient(policy, world, state, far, method=method)
    with pytest.raises(ValueError, match=r"MultiStep: expected .*MultiStepDynamics"):
        policy_gradient(
            policy, replace(world, dynamics=Changed(4, 2, (8,)).double()), state, noise[:, :, :0], method=MultiStep()
        )
    with pytest.raises(ValueError, match="out_std: expected finite values of shape"):
        world.dynamics.set_scales(torch.zeros(4), torch.ones(4), torch.zeros(3, 4), torch.zeros(3, 4))


class Changed(MultiStepDynamics):
    """A user's own: its trajectory is another, so torch differentiates it."""

    def predict(self, state, actions, noise, first=1):
        return (
            super().predict(state, actions, noise, first)
            + 0.1 * torch.sin(actions.sum(-1, keepdim=True).cumsum(-2))[..., first - 1 :, :]
        )


def test_a_changed_one_is_differentiated_by_torch(setup):
    policy, world = setup
    torch.manual_seed(1)
    f = Changed(4, 2, (8,), horizon=3).double()
    state, noise = torch.randn(4).double(), torch.randn(2, 3, *f.noise_shape).double()
    problem = policy, replace(world, dynamics=f), state, noise
    expected = policy_gradient(*problem, method=Autograd())
    assert relative_error(policy_gradient(*problem).gradient, expected.gradient) == 0.0


def test_it_is_kept_on_disk_as_it_is(setup, tmp_path):
    _, world = setup
    world.dynamics.sweeps = None
    again = load_module(save_module(world.dynamics, tmp_path / "dynamics.safetensors"))
    assert isinstance(again, MultiStepDynamics)
    assert again.config == world.dynamics.config
    before, after = world.dynamics.state_dict(), again.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("sweeps", [None, 2])
def test_growth_is_the_norm_of_the_jacobian(setup, sweeps):
    policy, world = setup
    world.dynamics.sweeps = sweeps
    state, noise = torch.randn(2, 4).double(), torch.randn(2, 3, 3, 1, 4).double()
    growth = multistep_growth(checked(policy, world, state, noise))
    assert growth.shape == (2, 3, 4)
    for n, i in ((0, 0), (1, 2)):

        def last(s, n=n, i=i):
            return world.dynamics.imagine(policy, s[None, None], noise[n : n + 1, i : i + 1])[0, 0]

        J = torch.autograd.functional.jacobian(last, state[n])
        torch.testing.assert_close(growth[n, i], torch.linalg.matrix_norm(J, 2), rtol=1e-12, atol=1e-12)
    found = jacobian_growth(policy, world, state.numpy(), horizon=10, particles=2, seed=0)
    assert len(found["median"]) == 4


@pytest.mark.parametrize(
    ("options", "update", "name"),
    [
        ({}, FisherStep(), "FisherStep"),
        ({}, Decoupled(), "Decoupled"),
        ({"method": "forward"}, None, "method"),
        ({"method": "fused-adjoint"}, None, "method"),
    ],
)
def test_what_a_controller_cannot_do_with_it_is_said_when_it_is_made(options, update, name):
    world = World(MultiStepDynamics(3, 2, (8,), horizon=2), RewardModel(3, 2, (8,)), TwinCritic(3, 2, (8,)), 0.9)
    with pytest.raises(ValueError, match=f"{name}.*MultiStepDynamics"):
        MPC(Actor(3, 2, (8,)), world, MPCConfig(horizon=2, particles=2, **options), update=update)
    with pytest.raises(ValueError, match="one step at a time, got MultiStepDynamics"):
        Planner(Actor(3, 2, (8,)), world)
