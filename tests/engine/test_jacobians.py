"""The hand-written pieces one by one: networks, chain, policy, values, each against torch.func."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jacrec import (
    Actor,
    Adjoint,
    Auto,
    Autograd,
    BatchedPolicy,
    Denoiser,
    DeterministicDynamics,
    DiffusionDynamics,
    EnsembleDynamics,
    FlowDynamics,
    Forward,
    MeanFlowDynamics,
    RewardModel,
    TwinCritic,
    World,
    imagined_return,
    mpc_update,
    policy_gradient,
)
from jacrec.engine.jacobians.chain import chain_adjoint, chain_forward, chain_record
from jacrec.engine.jacobians.dynamics import dynamics_pass, jacobians
from jacrec.engine.jacobians.ensemble import EnsemblePass
from jacrec.engine.jacobians.generic import GenericDynamicsPass, GenericPolicyPass
from jacrec.engine.jacobians.mlp import (
    join,
    mlp_parameter_pull,
    mlp_parameter_rows,
    mlp_pull,
    mlp_push,
    mlp_record,
    split,
)
from jacrec.engine.jacobians.policy import ActorPass, policy_pass
from jacrec.engine.jacobians.values import value_and_gradient
from jacrec.models.activations import ACTIVATIONS
from jacrec.models.networks import MLP
from tests.conftest import property_cases
from tests.oracles import relative_error
from tests.strategies import architectures, diffusions, ensembles, flows, meanflows, shake

close = dict(rtol=1e-11, atol=1e-11)  # entries, of order one; the gradients themselves are held to 1e-12 in norm
seeds = st.integers(0, 2**31 - 1)
dims = st.integers(1, 6)


def seeded(build, seed):
    """`build()` in float64 under its own seed, every parameter moved off its initial value."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build().double()
        shake(module)
    return module


def randn(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@property_cases(0.05)
@given(name=st.sampled_from(sorted(ACTIVATIONS)), seed=seeds)
def test_slopes_are_derivatives(name, seed):
    z = randn(seed, 50) * 4
    value, gate = ACTIVATIONS[name].gated(z)
    slope = torch.func.vmap(torch.func.grad(ACTIVATIONS[name].value))(z)
    torch.testing.assert_close(value, ACTIVATIONS[name].value(z), **close)
    x = randn(seed + 1, 3, 50)
    torch.testing.assert_close(ACTIVATIONS[name].times(x, gate), x * slope, **close)


@property_cases(0.1)
@given(options=architectures(), tanh=st.booleans(), stack=st.none() | st.integers(1, 3), a=dims, b=dims, seed=seeds)
@torch.no_grad()
def test_mlp(options, tanh, stack, a, b, seed):
    hidden = options.pop("hidden")

    def build():
        mlp = MLP(a, b, hidden, tanh_output=tanh, stack=stack, **options)
        mlp.initialise()
        return mlp

    mlp = seeded(build, seed)
    lead = (4,) if stack is None else (stack, 4)
    x, dx, y_bar = randn(seed, *lead, a), randn(seed + 1, *lead, 3, a), randn(seed + 2, *lead, b)
    value, pull = torch.func.vjp(lambda p, x: torch.func.functional_call(mlp, p, (x,)), dict(mlp.named_parameters()), x)
    gradient, x_bar = pull(y_bar)
    first = mlp.layers[0]
    z = first(x)
    y, tape = mlp_record(mlp, z, keep_inputs=True)
    torch.testing.assert_close(y, value, **close)
    W = first.weight if stack is None else first.weight.unsqueeze(1)
    torch.testing.assert_close((mlp_pull(mlp, tape, y_bar).unsqueeze(-2) @ W).squeeze(-2), x_bar, **close)
    got = mlp_parameter_pull(mlp, tape, x, y_bar)
    assert set(got) == set(gradient)
    rows = mlp_parameter_rows(mlp, tape, x, y_bar)
    for name, g in gradient.items():
        torch.testing.assert_close(got[name], g, **close)
        torch.testing.assert_close(rows[name].sum(len(lead) - 1), g, **close)
    tangents = torch.stack([torch.func.jvp(mlp, (x,), (dx[..., t, :],))[1] for t in range(3)], -2)
    y, dy = split(mlp_push(mlp, join(z, dx @ W.mT)))
    torch.testing.assert_close(y, value, **close)
    torch.testing.assert_close(dy, tangents, **close)


chains = st.one_of(
    *(
        st.tuples(st.just(kind), options)
        for kind, options in ((DiffusionDynamics, diffusions()), (FlowDynamics, flows()), (MeanFlowDynamics, meanflows()))
    )
)


@property_cases(0.1)
@given(chain=chains, d=dims, m=dims, T=st.integers(1, 5), seed=seeds)
@torch.no_grad()
def test_chain(chain, d, m, T, seed):
    kind, options = chain
    f = seeded(lambda: kind(d, m, **options), seed)
    s, a, noise = randn(seed, 3, d), randn(seed + 1, 3, m), randn(seed + 2, 3, *f.noise_shape)
    ds, da, lam = randn(seed + 3, 3, T, d), randn(seed + 4, 3, T, m), randn(seed + 5, 3, d)
    expected, pull = torch.func.vjp(lambda s, a: f(s, a, noise), s, a)
    v_s, v_a = pull(lam)
    tangents = torch.stack([torch.func.jvp(lambda s, a: f(s, a, noise), (s, a), (ds[:, t], da[:, t]))[1] for t in range(T)], 1)
    # hard schedules in few steps amplify: 1/sqrt(alpha) is 31 a step where alpha is capped, so errors are relative
    scale = 1 + max(float(x.abs().max()) for x in (expected, tangents, v_s, v_a))
    near = dict(rtol=1e-11, atol=1e-12 * scale)
    value, got = chain_forward(f, s, a, noise, ds, da)
    torch.testing.assert_close(value, expected, **near)
    torch.testing.assert_close(got, tangents, **near)
    for recompute in (False, True):
        value, tape = chain_record(f, s, a, noise, recompute=recompute)
        torch.testing.assert_close(value, expected, **near)
        got_s, got_a = chain_adjoint(f, tape, lam)
        torch.testing.assert_close(got_s, v_s, **near)
        torch.testing.assert_close(got_a, v_a, **near)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own mish, vmapped
@property_cases(0.05)
@given(options=architectures(), target=st.sampled_from(["difference", "state"]), d=dims, m=dims, seed=seeds)
@torch.no_grad()
def test_written_passes_equal_generic_ones(options, target, d, m, seed):
    f = seeded(lambda: DeterministicDynamics(d, m, target=target, **options), seed)
    s, a, noise, lam = randn(seed, 4, d), randn(seed + 1, 4, m), randn(seed + 2, 4, 0, d), randn(seed + 3, 4, d)
    own, generic = dynamics_pass(f), GenericDynamicsPass(f)
    (x, J), (y, G) = jacobians(own, s, a, noise), jacobians(generic, s, a, noise)
    torch.testing.assert_close((x, J.F_s, J.F_a), (y, G.F_s, G.F_a), **close)
    for left, right in zip(own.record(s, a, noise)[1](lam), generic.record(s, a, noise)[1](lam), strict=True):
        torch.testing.assert_close(left, right, **close)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@property_cases(0.05)
@given(options=ensembles(), rows=st.integers(1, 9), d=dims, m=dims, seed=seeds)
@torch.no_grad()
def test_an_ensembles_passes_equal_generic_ones(options, rows, d, m, seed):
    f = seeded(lambda: EnsembleDynamics(d, m, **options), seed)
    s, a, noise, lam = randn(seed, rows, d), randn(seed + 1, rows, m), randn(seed + 2, rows, 2, d), randn(seed + 3, rows, d)
    own, generic = dynamics_pass(f), GenericDynamicsPass(f)
    assert isinstance(own, EnsemblePass)
    (x, J), (y, G) = jacobians(own, s, a, noise), jacobians(generic, s, a, noise)
    torch.testing.assert_close((x, J.F_s, J.F_a), (y, G.F_s, G.F_a), **close)
    torch.testing.assert_close(own.step(s, a, noise), f(s, a, noise), **close)
    for left, right in zip(own.record(s, a, noise)[1](lam), generic.record(s, a, noise)[1](lam), strict=True):
        torch.testing.assert_close(left, right, **close)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@property_cases(0.1)
@given(options=architectures(), n=st.none() | st.integers(1, 3), d=dims, m=dims, seed=seeds)
@torch.no_grad()
def test_policy_passes(options, n, d, m, seed):
    policy = seeded(lambda: Actor(d, m, **options), seed)
    if n is not None:
        policy = seeded(lambda: BatchedPolicy(policy, n), seed)
    s, w = randn(seed, n or 2, 3, d), randn(seed + 1, n or 2, 3, m)
    own, generic = policy_pass(policy, s), GenericPolicyPass(policy, s)
    assert isinstance(own, ActorPass)
    torch.testing.assert_close(own.action, generic.action, **close)
    torch.testing.assert_close(own.action, policy(s), **close)
    torch.testing.assert_close(own.Pi_s(), generic.Pi_s(), **close)
    torch.testing.assert_close(own.pull_state(w), generic.pull_state(w), **close)
    torch.testing.assert_close(own.pull_parameters(w), generic.pull_parameters(w), **close)
    unit = torch.eye(m, dtype=s.dtype).expand(*w.shape, m)
    for cotangent in (w, unit):
        torch.testing.assert_close(own.parameter_rows(cotangent), generic.parameter_rows(cotangent), **close)


@property_cases(0.05)
@given(options=architectures(), critics=st.integers(1, 3), d=dims, m=dims, seed=seeds)
@torch.no_grad()
def test_values(options, critics, d, m, seed):
    s, a = randn(seed, 5, d), randn(seed + 1, 5, m)
    for build in (lambda: RewardModel(d, m, **options), lambda: TwinCritic(d, m, critics=critics, **options)):
        f = seeded(build, seed)
        value, v_s, v_a = value_and_gradient("critic", f, s, a)
        expected, pull = torch.func.vjp(f, s, a)
        torch.testing.assert_close(value, expected, **close)
        torch.testing.assert_close((v_s, v_a), pull(torch.ones_like(value)), **close)


@torch.no_grad()
def test_critics_that_tie_share_the_gradient():
    f = TwinCritic(3, 2, (8,)).double()
    for p in f.parameters():
        p[1] = p[0]
    s, a = randn(0, 4, 3), randn(1, 4, 2)
    _, v_s, v_a = value_and_gradient("critic", f, s, a)
    torch.testing.assert_close((v_s, v_a), torch.func.vjp(f, s, a)[1](torch.ones(4, dtype=torch.float64)))


class Halved(Actor):
    """Someone's Actor with another forward: it must not be differentiated, or called, as ours."""

    def forward(self, state):
        return 0.5 * super().forward(state)


class Clamped(Denoiser):
    """A stranger deep inside our own dynamics."""

    def forward(self, u, k, state, action):
        return super().forward(u, k, state, action).tanh()


def altered_problems():
    """Policies and worlds that look like ours from outside, by what was changed."""
    torch.manual_seed(0)

    def parts():
        actor, f = Actor(3, 2, (4,)).double(), DiffusionDynamics(3, 2, (4,), steps=2).double()
        r, q = RewardModel(3, 2, (4,)).double(), TwinCritic(3, 2, (4,)).double()
        for module in (actor, f, r, q):
            shake(module)
        return actor, f, r, q

    actor, f, r, q = parts()
    halved = Halved(3, 2, (4,)).double()
    halved.load_state_dict(actor.state_dict())
    yield "subclass", halved, World(f, r, q, 0.9)
    actor, f, r, q = parts()
    f.denoiser.__class__ = Clamped
    yield "subclass inside", actor, World(f, r, q, 0.9)
    actor, f, r, q = parts()
    actor.mlp.register_forward_hook(lambda module, args, output: 0.5 * output)
    yield "hook", actor, World(f, r, q, 0.9)
    actor, f, r, q = parts()
    torch.nn.utils.parametrizations.weight_norm(actor.mlp.layers[0])
    yield "parametrisation", actor, World(f, r, q, 0.9)
    actor, f, r, q = parts()
    r.mlp.layers[0].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    q.register_forward_hook(lambda module, args, output: output.sin())
    yield "hooks on reward and critic", actor, World(f, r, q, 0.9)


def str_or_nothing(x):
    return x if isinstance(x, str) else ""


@pytest.mark.parametrize(("changed", "policy", "world"), list(altered_problems()), ids=str_or_nothing)
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_what_only_looks_like_ours_takes_the_generic_path(changed, policy, world, batched):
    state, noise = randn(0, 3, 3), randn(1, 3, 4, 2, 3, 3)
    expected = policy(state).detach()
    if batched:
        policy = BatchedPolicy(policy, 3)
    torch.testing.assert_close(policy(state.unsqueeze(1)).squeeze(1), expected)
    reference = policy_gradient(policy, world, state, noise, method=Autograd())
    torch.testing.assert_close(imagined_return(policy, world, state, noise), reference.value)
    for method in (Forward(), Forward(sensitivities="dense"), Adjoint(), Auto()):
        got = policy_gradient(policy, world, state, noise, method=method)
        torch.testing.assert_close(got.value, reference.value)
        assert relative_error(got.gradient, reference.gradient) <= 1e-12
    torch.testing.assert_close(mpc_update(policy, world, state, noise=noise, lr=0.0).action, expected)
