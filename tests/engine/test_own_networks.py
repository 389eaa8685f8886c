"""A user's own networks: gradients and decisions are autograd's, in compiled code where their layers are known ones."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from jacrec import (
    MPC,
    Actor,
    Adjoint,
    Anchor,
    Auto,
    Autograd,
    BatchedPolicy,
    DiffusionDynamics,
    Forward,
    MPCConfig,
    MultiStep,
    MultiStepDynamics,
    RewardModel,
    TwinCritic,
    World,
    explain,
    gradient_signal,
    mpc_update,
    policy_gradient,
)
from jacrec.engine import choice
from jacrec.engine.shapes import problem
from jacrec.experimental import FisherStep
from jacrec.kernels.cpu.gradient import plans
from tests.conftest import property_cases
from tests.cpu_cases import FUSED, same_decision
from tests.models.test_layers import CHANGES, NEAR_MISSES, stack
from tests.oracles import relative_error
from tests.strategies import ForeignDynamics, ForeignPolicy, cases, foreign_critic, foreign_reward, shake, stacks

d, m = 4, 2
PARTS = st.sampled_from(["own", "view", "foreign"])


@pytest.fixture(autouse=True)
def _fresh():
    plans.forget()


def world_of(**parts):
    torch.manual_seed(0)
    dynamics = DiffusionDynamics(d, m, (8,), steps=2).double()
    own = {"reward": RewardModel(d, m, (8,)).double(), "critic": TwinCritic(d, m, (8,)).double()} | parts
    shake(dynamics)
    return World(parts.get("dynamics", dynamics), own["reward"], own["critic"], 0.9, anchor=own.get("anchor"))


def inputs(world, N=2, M=3, H=2):
    rng = torch.Generator().manual_seed(1)
    noise = torch.randn(N, M, H, *world.dynamics.noise_shape, dtype=torch.float64, generator=rng)
    return torch.randn(N, d, dtype=torch.float64, generator=rng), noise


def is_right(policy, world, methods=(FUSED,), tolerance=1e-11):
    """Whether the methods' gradients are autograd's, with the names and order of the policy's parameters."""
    state, noise = inputs(world)
    expected = policy_gradient(policy, world, state, noise, method=Autograd())
    for method in methods:
        got = policy_gradient(policy, world, state, noise, method=method)
        assert list(got.gradient) == [name for name, _ in policy.named_parameters()]
        torch.testing.assert_close(got.value, expected.value, rtol=tolerance, atol=tolerance)
        assert relative_error(got.gradient, expected.gradient) < tolerance, method
    return Auto().choose(problem(policy, world, state, noise)) == FUSED


@property_cases(0.04)
@given(
    case=cases(max_H=3, max_M=4, foreign=False),
    build=stacks(),
    parts=st.tuples(PARTS, PARTS),
    anchored=st.sampled_from([None, (0.5, False), (0.5, True), (0.0, True)]),
    tanh=st.booleans(),
)
def test_every_form_has_autograds_gradient(case, build, parts, anchored, tanh):
    _, world, state, noise = case.build()
    one, both = build(case.d, case.m, tanh=tanh), case.d + case.m
    policy = BatchedPolicy(one, case.N) if case.batched else one
    shake(policy, 0.05)
    reward = {
        "own": world.reward,
        "view": RewardModel.from_module(build(both, 1), state_dim=case.d),
        "foreign": foreign_reward,
    }[parts[0]]
    critic = {
        "own": world.critic,
        "view": TwinCritic.from_modules(build(both, 1), build(both, 1), state_dim=case.d),
        "foreign": foreign_critic,
    }[parts[1]]
    if parts[1] == "view":
        shake(critic, 0.1)
    anchor = None
    if anchored is not None and (case.H or not anchored[1]):
        anchor = Anchor(build(case.d, case.m, tanh=True).requires_grad_(False), *anchored)
    args = policy, World(world.dynamics, reward, critic, case.discount, anchor=anchor), state, noise
    expected = policy_gradient(*args, method=Autograd())
    forward = () if case.dynamics[0] == "ensemble" else (Forward(kernel="fused"),)
    for method in (FUSED, *forward, Adjoint(), Forward(), Auto()):
        got = policy_gradient(*args, method=method)
        assert list(got.gradient) == list(expected.gradient)
        torch.testing.assert_close(got.value, expected.value, rtol=1e-9, atol=1e-9)
        assert relative_error(got.gradient, expected.gradient) < 1e-8, method
    assert Auto().choose(problem(*args)) == FUSED


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_parameters_are_seen(change, batched):
    module = stack(nn.GELU(), nn.LayerNorm(5))
    policy = BatchedPolicy(module, 2) if batched else module
    value = [stack(nn.SiLU(), nn.LayerNorm(5), inputs=d + m, outputs=1, tanh=False) for _ in range(3)]
    world = world_of(
        reward=RewardModel.from_module(value[0], state_dim=d), critic=TwinCritic.from_modules(*value[1:], state_dim=d)
    )
    assert is_right(policy, world)
    for part in value:
        part[0].weight.data.mul_(1.1)
        part[2].load_state_dict({k: 2 * x for k, x in part[2].state_dict().items()})
        part[3].weight = nn.Parameter(1.2 * part[3].weight.detach())
    assert is_right(policy, world)
    if batched:
        policy.get_parameter("0.weight").data = 2 * policy.get_parameter("0.weight").detach()
    else:
        change(policy)
    assert is_right(policy, world)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_are_differentiated_as_they_are(name, kept):
    policy, world = NEAR_MISSES[name](), world_of()
    if name == "a dropout in training mode":
        with pytest.raises(ValueError, match=r"call .eval\(\) first"):
            is_right(policy, world)
        return
    if kept:
        state, noise = inputs(world)
        policy_gradient(policy, world, state, noise)
    assert not is_right(policy, world, (Auto(), Adjoint(), Forward()), 1e-10)
    with pytest.raises(ValueError, match='kernel="fused": policy: expected'):
        is_right(policy, world)


def hook(policy):
    return policy[1].register_forward_hook(lambda *a: 2 * a[-1])


def other_eps(policy):
    policy[2].eps = 0.3


def approximate(policy):
    policy[1].approximate = "tanh"


def other_activation(policy):
    policy[1] = nn.SiLU()


def another_class(policy):
    policy[1].__class__ = nn.Tanh


def another_forward(policy):
    policy.forward = lambda x: 0.5 * nn.Sequential.forward(policy, x)


def one_more_layer(policy):
    policy.append(nn.Tanh())


def parametrised(policy):
    nn.utils.parametrizations.weight_norm(policy[0])


@pytest.mark.parametrize(
    "change",
    [hook, other_eps, approximate, other_activation, another_class, another_forward, one_more_layer, parametrised],
)
@pytest.mark.parametrize("batched", [False, True])
def test_a_policy_that_changes_after_its_plan_was_made(change, batched):
    policy, world = stack(nn.GELU(), nn.LayerNorm(5)), world_of()
    policy = BatchedPolicy(policy, 2) if batched else policy
    assert is_right(policy, world)
    if batched and change is parametrised:  # its names are then others than the batch's
        return
    change(policy.template if batched else policy)
    served = is_right(policy, world, (Auto(), Adjoint()), 1e-10)
    assert served == (change in (other_eps, other_activation, another_class))


def test_a_layer_that_computes_something_else_from_now_on(monkeypatch):
    policy, world = stack(nn.SiLU()), world_of()
    assert is_right(policy, world)
    before = nn.SiLU.forward
    monkeypatch.setattr(nn.SiLU, "forward", lambda self, x: 2 * before(self, x))
    assert not is_right(policy, world, (Auto(), Adjoint()))


def test_dropout_that_is_switched_on_is_refused():
    policy, world = stack(nn.ReLU(), nn.Dropout(0.5)).eval(), world_of()
    assert is_right(policy, world)
    policy.train()
    with pytest.raises(ValueError, match=r"policy: expected deterministic.*call .eval\(\) first"):
        is_right(policy, world)
    policy.eval()
    assert is_right(policy, world)


def test_one_more_parameter_of_a_layer_of_an_actor():
    """It has a gradient of 0, by autograd and by `Auto`."""
    policy = Actor(d, m, (8,)).double()
    policy.mlp.layers[0].register_parameter("extra", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    assert not is_right(policy, world_of(), (Auto(), Adjoint(), Forward()))


def test_a_stacks_own_parameters_decide():
    policy, world = BatchedPolicy(stack(), 2), world_of()
    policy.register_parameter("extra", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    with pytest.raises(ValueError, match="expected extra of shape none"):
        is_right(policy, world, (Auto(),))


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1e-3}, {"updates": 3}])
@pytest.mark.parametrize("batched", [False, True])
def test_decisions_move_the_users_parameters(batched, options):
    module, world = stack(nn.Mish(), nn.LayerNorm(5)), world_of(reward=foreign_reward)
    module[3].bias.requires_grad_(False)
    policy = BatchedPolicy(module, 2) if batched else module
    state, noise = inputs(world)
    results = []
    for method in (FUSED, Autograd()):
        own = copy.deepcopy(policy)
        results.append((mpc_update(own, world, state, noise=noise, lr=0.1, method=method, **options), own))
    (got, moved), (expected, theirs) = results
    same_decision(got, expected, moved, theirs)
    assert not torch.equal(moved.get_parameter("0.weight"), policy.get_parameter("0.weight"))
    assert torch.equal(moved.get_parameter("3.bias"), policy.get_parameter("3.bias"))


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("carry", ["step", "episode", "persist"])
def test_controllers(carry, batch):
    policy, world = stack(nn.SiLU()), world_of(critic=foreign_critic)
    settings = dict(horizon=2, particles=3, lr=0.1, updates=2, carry=carry, trust_radius=0.5, max_action_change=0.2)
    shape = (d,) if batch is None else (batch, d)
    ours, theirs = (
        MPC(policy, world, MPCConfig(**settings, method=method), batch=batch) for method in ("fused-adjoint", "autograd")
    )
    for i in range(4):
        observation = torch.full(shape, 0.1 * i, dtype=torch.float64)
        torch.testing.assert_close(ours.act(observation), theirs.act(observation), rtol=1e-9, atol=1e-9)
        if i == 2:
            ours.new_episode()
            theirs.new_episode()
    assert (ours.drift() > 0).all()


def test_a_controller_of_an_own_policy_is_pickled():
    critics = TwinCritic.from_modules(*(stack(inputs=d + m, outputs=1, tanh=False) for _ in range(2)), state_dim=d)
    mpc = MPC(stack(), world_of(critic=critics), MPCConfig(horizon=1, particles=2, lr=0.1))
    observation = torch.ones(d, dtype=torch.float64)
    mpc.act(observation)
    again = pickle.loads(pickle.dumps(mpc))
    torch.testing.assert_close(again.act(observation), mpc.act(observation), rtol=1e-12, atol=1e-12)


def test_diagnostics_and_other_steps_are_those_of_an_actor():
    module, world = stack(nn.ReLU(), nn.LayerNorm(5)), world_of()
    actor, (state, noise) = Actor.from_module(copy.deepcopy(module)), inputs(world)
    ours, theirs = (gradient_signal(x, world, state, noise).snr for x in (module, actor))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    controllers = [MPC(x, world, MPCConfig(horizon=1, particles=3, lr=0.1), update=FisherStep()) for x in (module, actor)]
    actions = [x.act(state[0]) for x in controllers]
    torch.testing.assert_close(*actions, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("team", [1, 2])
@pytest.mark.parametrize(("reward", "critic"), [(True, False), (False, True), (True, True)])
def test_other_rewards_and_critics_are_torchs_to_evaluate(reward, critic, team):
    calls = []

    def counted(function):
        def call(state, action):
            calls.append(len(state))
            return function(state, action)

        return call

    parts = ({"reward": counted(foreign_reward)} if reward else {}) | ({"critic": counted(foreign_critic)} if critic else {})
    world, policy = world_of(**parts), stack()
    state, noise = inputs(world, N=1, M=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(team)
    try:
        got = policy_gradient(policy, world, state, noise, method=Adjoint(kernel="fused", team=team))
    finally:
        torch.set_num_threads(threads)
    assert relative_error(got.gradient, policy_gradient(policy, world, state, noise, method=Autograd()).gradient) < 1e-12
    calls.clear()
    policy_gradient(policy, world, *inputs(world))
    assert calls == [3 * 2 * 2] * reward + [3 * 2] * critic, "one call for all steps"
    calls.clear()
    policy_gradient(policy, world, *inputs(world, H=0))
    assert calls == [2] * critic, "without steps there is no reward"


def test_other_rewards_of_a_multi_step_model():
    world = world_of(dynamics=MultiStepDynamics(d, m, (8,), horizon=3).double(), reward=foreign_reward)
    state, noise = inputs(world)
    policy = stack()
    got = policy_gradient(policy, world, state, noise, method=MultiStep(kernel="fused"))
    assert relative_error(got.gradient, policy_gradient(policy, world, state, noise, method=Autograd()).gradient) < 1e-12


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, state, action):
        return self.drop(foreign_reward(state, action))


def test_other_rewards_are_examined_before_every_use():
    reward = Dropping().eval()
    world, policy = world_of(reward=reward), stack()
    assert is_right(policy, world)
    reward.train()
    with pytest.raises(ValueError, match=r"reward: expected deterministic.*call .eval\(\) first"):
        is_right(policy, world)
    reward.eval()
    reward.register_forward_hook(lambda *a: 2 * a[-1])
    assert is_right(policy, world)


def test_a_reward_without_derivative_is_refused():
    world = world_of(reward=lambda s, a: foreign_reward(s, a).detach())
    with pytest.raises(ValueError, match="reward: expected an output that is differentiable in state and action"):
        policy_gradient(stack(), world, *inputs(world))


def test_a_reward_that_is_not_finite_rejects_the_step():
    world, policy = world_of(reward=lambda s, a: foreign_reward(s, a) / (s.sum(-1) * 0)), stack()
    state, noise = inputs(world)
    assert not mpc_update(policy, world, state, noise=noise).accepted.any()


def test_what_keeps_a_problem_from_compiled_code_is_explained(caplog, monkeypatch):
    policy, world = stack(), world_of()
    assert explain(policy, world) == explain(BatchedPolicy(policy, 3), world) == {}
    told = explain(ForeignPolicy(d, m).double(), world_of(reward=foreign_reward, critic=foreign_critic))
    assert told.keys() == {"policy", "reward", "critic"}
    assert "got ForeignPolicy" in told["policy"]
    assert "RewardModel.from_module" in told["reward"]
    assert "TwinCritic.from_modules" in told["critic"]
    assert "got LayerNorm → ReLU" in explain(stack(nn.LayerNorm(5), nn.ReLU()), world)["policy"]
    assert explain(stack(tanh=False), world) == {}
    anchored = world_of(anchor=Anchor(stack(tanh=False), 0.1))
    assert "expected a Tanh as its last layer, got none" in explain(policy, anchored)["anchor"]
    assert "got ForeignDynamics" in explain(policy, world_of(dynamics=ForeignDynamics(d, m).double()))["dynamics"]
    monkeypatch.setattr(choice, "_logged", set())
    Auto().choose(problem(stack(nn.ELU()), world, *inputs(world)))
    assert ["got ELU at '1'" in record.message for record in caplog.records] == [True]
