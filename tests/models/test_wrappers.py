"""Modules as others wrap them: torch.compile, DataParallel, torch.jit, weight_norm, kept activations."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from jacrec import (
    MPC,
    Actor,
    Adjoint,
    Auto,
    Autograd,
    BatchedPolicy,
    DiffusionDynamics,
    Forward,
    RewardModel,
    TwinCritic,
    World,
    linearize,
    mpc_update,
    policy_gradient,
)
from jacrec.engine.shapes import problem
from tests.oracles import relative_error

d, m = 3, 2


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(d, 8), nn.Softplus(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, m))

    def forward(self, state):
        return torch.tanh(self.net(state))


class Keeping(Policy):
    """It keeps an activation, a list of them, and the distribution made from them."""

    def forward(self, state):
        self.hidden = self.net[0](state)
        self.all = {"layers": [self.hidden, self.net[2](self.net[1](self.hidden))]}
        action = super().forward(state)
        self.distribution = torch.distributions.Normal(action, 1.0)
        return action


def compiled(part):
    return torch.compile(part, backend="aot_eager")


@pytest.fixture
def world():
    torch.manual_seed(0)
    parts = DiffusionDynamics(d, m, (8,), steps=3), RewardModel(d, m, (8,)), TwinCritic(d, m, (8,))
    return World(*(part.double() for part in parts), 0.9)


@pytest.fixture
def state():
    return torch.randn(d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def noise():
    return torch.randn(4, 2, 4, d, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, lambda x: nn.DataParallel(compiled(x))])
def test_a_wrapped_policy_has_the_gradient_of_the_module_inside(world, state, noise, wrap):
    policy = Policy().double()
    expected = policy_gradient(policy, world, state, noise)
    wrapped = wrap(policy)
    for method in (Auto(), Adjoint(), Forward(), Autograd()):
        got = policy_gradient(wrapped, world, state, noise, method=method)
        assert list(got.gradient) == [name for name, _ in wrapped.named_parameters()]
        inner = dict(zip(expected.gradient, got.gradient.values(), strict=True))
        assert relative_error(inner, expected.gradient) < 1e-12
    particles = linearize(wrapped, world, state, noise).particle_gradients()
    assert list(particles) == [name for name, _ in wrapped.named_parameters()]


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel])
def test_an_update_moves_the_users_own_parameters(world, state, noise, wrap):
    policy = Policy().double()
    twin, own = copy.deepcopy(policy), list(policy.parameters())
    mpc_update(wrap(policy), world, state, noise=noise, lr=1e-2)
    mpc_update(twin, world, state, noise=noise, lr=1e-2)
    assert all(a is b for a, b in zip(policy.parameters(), own, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("batch", [None, 2])
def test_a_controller_of_a_wrapped_policy_acts_as_one_of_the_policy(world, state, batch):
    policy = Policy().double()
    at = state if batch is None else torch.stack([state, -state])
    for wrap in (compiled, nn.DataParallel):
        assert torch.equal(MPC(wrap(policy), world, batch=batch).act(at), MPC(policy, world, batch=batch).act(at))


def test_a_compiled_actor_keeps_its_kernels(world, state, noise):
    policy = compiled(Actor(d, m, (8,)).double())
    assert Auto().choose(problem(policy, world, state, noise)) == Adjoint(kernel="fused")


def test_the_parts_of_a_world_are_unwrapped(world, state, noise):
    expected = policy_gradient(Policy().double(), world, state, noise)

    def reward(state, action):
        return -state.square().sum(-1)

    wrapped = World(nn.DataParallel(world.dynamics), compiled(reward), compiled(world.critic), 0.9)
    assert (wrapped.dynamics, wrapped.reward, wrapped.critic) == (world.dynamics, reward, world.critic)
    assert list(policy_gradient(Policy().double(), wrapped, state, noise).gradient) == list(expected.gradient)


def compiled_within():
    policy = Policy().double()
    policy.net = compiled(policy.net)
    return policy


def compiled_in_place():
    policy = Policy().double()
    policy.compile(backend="aot_eager")
    return policy


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # from within torch's compiler
@pytest.mark.parametrize("make", [compiled_within, compiled_in_place])
def test_a_compiled_submodule_is_used_or_told_of(world, state, noise, make):
    policy = make()
    assert policy_gradient(policy, world, state, noise, method=Autograd()).value.isfinite()
    with pytest.raises(ValueError, match=r"before torch.compile or .compile\(\), use method=Autograd\(\)"):
        policy_gradient(policy, world, state, noise, method=Adjoint())


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_scripted_policy_is_refused_and_a_scripted_critic_serves(world, state, noise):
    scripted = torch.jit.script(Policy().double())
    make = (
        lambda: policy_gradient(scripted, world, state, noise),
        lambda: mpc_update(scripted, world, state),
        lambda: MPC(scripted, world),
        lambda: MPC(scripted, world, batch=2),
        lambda: BatchedPolicy(scripted, 2),
    )
    for entry in make:
        with pytest.raises(ValueError, match=r"policy: expected the module itself, .* torch.jit was given"):
            entry()

    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(d + m, 1).double()

        def forward(self, state, action):
            return self.net(torch.cat([state, action], -1)).tanh().squeeze(-1)

    critic, policy = Critic(), Policy().double()
    plain = World(world.dynamics, world.reward, critic, 0.9)
    traced = World(world.dynamics, world.reward, torch.jit.script(critic), 0.9)
    expected = policy_gradient(policy, plain, state, noise).gradient
    assert relative_error(policy_gradient(policy, traced, state, noise).gradient, expected) < 1e-12


@pytest.mark.parametrize("batch", [None, 2])
def test_a_policy_that_keeps_its_activations_is_copied(world, state, batch):
    policy = Keeping().double()
    policy(state)
    kept = policy.hidden
    plain = Policy().double()
    plain.load_state_dict(policy.state_dict())
    at = state if batch is None else torch.stack([state, -state])
    assert torch.equal(MPC(policy, world, batch=batch).act(at), MPC(plain, world, batch=batch).act(at))
    mpc = MPC(policy, world, batch=batch)
    mpc.act(at)
    assert torch.equal(copy.deepcopy(mpc).act(at), mpc.act(at))
    assert policy.hidden is kept
    assert kept.grad_fn is not None


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch batches it row by row
@pytest.mark.parametrize("batch", [None, 2])
def test_old_weight_norm_is_copied_and_moves(world, state, batch):
    policy = Policy().double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and found in many models
        policy.net[0] = nn.utils.weight_norm(policy.net[0])
    policy(state)
    mpc = MPC(policy, world, batch=batch)
    at = state if batch is None else torch.stack([state, -state])
    mpc.act(at)
    assert mpc.last.accepted.all()
    assert mpc.drift().min() > 0
    again = pickle.loads(pickle.dumps(mpc))
    assert torch.equal(again.act(at), mpc.act(at))


def test_what_nobody_can_copy_is_said():
    class Handle(Policy):
        def __deepcopy__(self, memo):
            raise RuntimeError("a file cannot be copied")

    world = World(DiffusionDynamics(d, m, (8,), steps=3), RewardModel(d, m, (8,)), TwinCritic(d, m, (8,)), 0.9)
    with pytest.raises(ValueError, match=r"Handle: expected a module that copy.deepcopy can copy, got a file"):
        MPC(Handle(), world)


def test_an_attribute_of_a_policy_may_have_any_name_but_those_of_the_batch(world, state):
    class Named(Policy):
        def __init__(self, n):
            super().__init__()
            self.n = n

        def forward(self, state):
            return super().forward(state) * (self.n if isinstance(self.n, int) else self.n(state))

    at = torch.stack([state, -state])
    assert MPC(Named(1).double(), world, batch=2).act(at).shape == (2, m)
    assert MPC(Named(nn.Linear(d, m)).double(), world).act(state).shape == (m,)
    with pytest.raises(ValueError, match=r"attributes \['n'\] collide with its own; rename them"):
        MPC(Named(nn.Linear(d, m)).double(), world, batch=2)
