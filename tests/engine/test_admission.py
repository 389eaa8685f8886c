"""A part that is random, cannot be called or answers with something else is refused by name, before it is used."""

import copy
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from jacrec import (
    MPC,
    Actor,
    Adjoint,
    Autograd,
    BatchedPolicy,
    DiffusionDynamics,
    MPCConfig,
    RewardModel,
    TwinCritic,
    World,
    imagined_return,
    linearize,
    mpc_update,
    policy_gradient,
)
from jacrec.models.networks import MLP
from jacrec.planners import Planner, PlannerConfig
from tests.strategies import ForeignDynamics, foreign_critic, foreign_reward

d, m = 4, 2


class Policy(nn.Module):
    """A stranger's policy; `draw` decides what is added to its mean."""

    def __init__(self, draw=None):
        super().__init__()
        self.net, self.draw = nn.Sequential(nn.Linear(d, 8), nn.Tanh(), nn.Linear(8, m)), draw

    def forward(self, state):
        mean = torch.tanh(self.net(state))
        return mean if self.draw is None else self.draw(mean)


def with_noise(function):
    """The function as dynamics, with noise as `ForeignDynamics`."""
    function.noise_shape = (2,)
    return function


ENTRIES = [
    lambda p, w, s: policy_gradient(p, w, s, torch.randn(3, 2, 2)),
    lambda p, w, s: linearize(p, w, s, torch.randn(3, 2, 2)),
    lambda p, w, s: imagined_return(p, w, s, torch.randn(3, 2, 2)),
    lambda p, w, s: mpc_update(p, w, s),
    lambda p, w, s: MPC(p, w).act(s),
    lambda p, w, s: MPC(p, w, batch=2).act(torch.stack([s, s])),
    lambda p, w, s: Planner(p, w, PlannerConfig()).act(s),
]

RANDOM = {
    "normal": lambda a: a + 0.3 * torch.randn_like(a),
    "small": lambda a: a + 1e-6 * torch.randn_like(a),
    "one of two": lambda a: torch.where(torch.randint(0, 2, (1,)).bool(), a, -a),
    "seldom": lambda a: torch.where(torch.rand(1) < 0.2, -a, a),
    "sample": lambda a: torch.distributions.Normal(a, 0.1).rsample(),
    "dropout": lambda a: nn.functional.dropout(a, 0.5, training=True),
    "numpy": lambda a: a + np.random.normal(),
    "python": lambda a: a * random.choice([1.0, -1.0]),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_random_policy_is_refused_wherever_it_is_given(world, entry):
    with pytest.raises(ValueError, match=r"policy: expected the same answer .* wrap the mean"):
        entry(Policy(RANDOM["normal"]), world, torch.zeros(d))


@pytest.mark.parametrize("draw", RANDOM.values(), ids=RANDOM)
def test_no_kind_of_randomness_passes(world, draw):
    with pytest.raises(ValueError, match="policy: expected the same answer"):
        mpc_update(Policy(draw), world, torch.zeros(d))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("dynamics", with_noise(lambda s, a, n: s + torch.randn_like(s))),
        ("reward", lambda s, a: foreign_reward(s, a) + torch.randn(len(s))),
        ("critic", lambda s, a: foreign_critic(s, a) * torch.rand(())),
    ],
)
def test_a_random_world_is_refused_by_the_part(world, part, value):
    with pytest.raises(ValueError, match=f"{part}: expected the same answer"):
        mpc_update(Policy(), replace(world, **{part: value}), torch.zeros(d))


def test_the_noise_is_not_randomness_of_the_dynamics(world):
    assert mpc_update(Policy(), world, torch.zeros(d)).accepted.all()


def test_a_recurrent_policy_is_refused(world):
    class Recurrent(Policy):
        carried = 0.0

        def forward(self, state):
            self.carried = 0.9 * self.carried + super().forward(state).detach()
            return super().forward(state) + self.carried

    with pytest.raises(ValueError, match=r"policy: .* keeps state between calls"):
        mpc_update(Recurrent(), world, torch.zeros(d))


def test_a_controller_refuses_at_its_construction_where_the_dimension_is_known(world):
    policy = Policy(RANDOM["normal"])
    policy.state_dim = d
    with pytest.raises(ValueError, match="policy: expected the same answer"):
        MPC(policy, world)
    hooked = Actor(d, m, (8,))
    hooked.register_forward_hook(lambda module, inputs, output: output + torch.randn_like(output))
    with pytest.raises(ValueError, match="policy: expected the same answer"):
        MPC(hooked, world)


def test_randomness_that_is_switched_on_later_is_found(world):
    class Switched(Policy):
        deterministic = True

        def forward(self, state):
            mean = super().forward(state)
            return mean if self.deterministic else mean + torch.randn_like(mean)

    policy = Switched()
    policy.deterministic = True
    mpc_update(policy, world, torch.zeros(d))
    policy.deterministic = False
    with pytest.raises(ValueError, match="policy: expected the same answer"):
        mpc_update(policy, world, torch.zeros(d))


def test_all_random_numbers_are_as_before(world):
    # it draws a sample, which is not the answer
    policy = Policy(lambda a: a + 0.0 * (torch.randn_like(a) + np.random.normal() + random.random()))
    noise = torch.randn(3, 2, 2)

    def drawn():
        return torch.rand(()).item(), np.random.rand(), random.random()

    def seed():
        torch.manual_seed(1), np.random.seed(1), random.seed(1)

    seed()
    expected = drawn()
    from jacrec.engine.admission import admit

    seed()
    admit(policy, world, torch.zeros(d), 2)
    assert drawn() == expected
    with pytest.raises(ValueError, match="same answer"):
        policy_gradient(Policy(RANDOM["normal"]), world, torch.zeros(d), noise)


def test_a_module_in_training_stays_as_it_is(world):
    """Its mode, its running statistics and its gradients; the refusal names the layer."""
    policy = nn.Sequential(nn.Linear(d, 8), nn.BatchNorm1d(8), nn.Linear(8, m))
    policy(torch.randn(5, d)).sum().backward()
    before = {name: x.clone() for name, x in policy.state_dict().items()}
    gradients = [p.grad.clone() for p in policy.parameters()]
    with pytest.raises(ValueError, match="BatchNorm1d at '1' in training mode"):
        mpc_update(policy, world, torch.zeros(d))
    mpc_update(policy.eval(), world, torch.zeros(d), updates=0)
    policy.train()
    assert all(torch.equal(x, before[name]) for name, x in policy.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(policy.parameters(), gradients, strict=True))


def test_running_statistics_do_not_count_the_calls(world):
    class Counting(Policy):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("mean", torch.zeros(d))

        def forward(self, state):
            self.calls += 1
            self.mean = 0.9 * self.mean
            return super().forward(state)

    from jacrec.engine.admission import admit

    policy = Counting()
    calls, mean = policy.calls, policy.mean
    admit(policy, world, torch.zeros(d), 2)
    assert policy.calls is calls
    assert policy.mean is mean
    assert calls.item() == 0


def test_each_part_is_called_at_its_first_use_alone(world):
    calls = []

    def reward(state, action):
        calls.append(len(state))
        return foreign_reward(state, action)

    world, policy, noise = replace(world, reward=reward), Policy(), torch.randn(3, 2, 2)
    policy_gradient(policy, world, torch.zeros(d), noise)
    first = len(calls)
    policy_gradient(policy, world, torch.zeros(d), noise)
    assert (first, len(calls)) == (8, 10)  # six times, then at two steps of each imagination


def test_without_imagination_only_policy_and_critic_are_called(world):
    def unused(*arguments):
        raise NotImplementedError

    world = replace(world, dynamics=with_noise(unused), reward=unused)
    assert mpc_update(Policy(), world, torch.zeros(d), horizon=0).accepted.all()


def forgetful(state, action):
    return state


def in_place(state, action, noise):
    return state.mul_(0.9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(dynamics=with_noise(forgetful)),
            r"dynamics: .*\(state, action, noise\).*another signature.*noise_shape = \(0,\)",
        ),
        (dict(dynamics=with_noise(lambda s, a, n: (s, n))), "dynamics: expected .* got tuple .* return the next state alone"),
        (dict(dynamics=with_noise(in_place)), "dynamics: .* changed in place"),
        (dict(reward=lambda s: s.sum(-1)), "reward: expected a callable reward.state, action.*another signature"),
        (dict(reward=lambda s, a: s @ torch.ones(9)), "reward: expected to take .* got an error.*RuntimeError"),
        (dict(critic=lambda s, a: (foreign_critic(s, a), foreign_critic(s, a))), "critic: .* got tuple .* take the minimum"),
        (dict(critic=lambda s, a: s[0]), r"critic: expected shape \(3,\), got \(4,\)"),
        (dict(critic=lambda s, a: {}["q"]), "critic: .* KeyError: 'q'"),
    ],
)
def test_what_cannot_be_called_is_named(world, change, message):
    with pytest.raises(ValueError, match=message):
        mpc_update(Policy(), replace(world, **change), torch.zeros(d))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda a: (a, a), "policy: expected actions .* got tuple.*wrap the mean"),
        (lambda a: torch.distributions.Normal(a, 1.0), "policy: expected actions .* got Normal.*wrap the mean"),
        (lambda a: a.double(), "policy: expected an answer in torch.float32 .* got torch.float64"),
        (lambda a: a @ torch.ones(7, 7), "policy: expected to take .* is d = 4 its dimension"),
    ],
)
def test_a_policy_that_answers_with_something_else_is_named(world, answer, message):
    with pytest.raises(ValueError, match=message):
        mpc_update(Policy(answer), world, torch.zeros(d))


def test_own_networks_with_a_damaged_layer_are_named():
    world = World(DiffusionDynamics(d, m, (8,), steps=3), RewardModel(d, m, (8,)), TwinCritic(d, m, (8,)), 0.9)
    world.reward.mlp.layers[0].weight = nn.Parameter(torch.zeros(8, 5))
    with pytest.raises(ValueError, match="reward: expected to take"):
        MPC(Actor(d, m, (8,)), world, MPCConfig(horizon=1))


@pytest.mark.parametrize("cut", ["no_grad", "detach", "elsewhere"])
def test_a_policy_cut_off_from_its_parameters_is_refused(cut):
    """Its updates would have no effect, without a word."""
    inner = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2), nn.Tanh())
    other = copy.deepcopy(inner)

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, state):
            if cut == "no_grad":
                with torch.no_grad():
                    return self.inner(state)
            return self.inner(state).detach() if cut == "detach" else OTHER[0](state)

    OTHER = [other]  # not a submodule
    world = World(DiffusionDynamics(3, 2, (8,), steps=2), RewardModel(3, 2, (8,)), TwinCritic(3, 2, (8,)), 0.9)
    for use in (
        lambda: MPC(Wrapped(), world),
        lambda: MPC(Wrapped(), world, batch=2),
        lambda: mpc_update(Wrapped(), world, torch.zeros(3), horizon=1),
    ):
        with pytest.raises(ValueError, match=r"^policy: .*depend on its parameters"):
            use()


def test_a_batch_moved_to_another_type_after_its_making_is_admitted():
    """The template of a `BatchedPolicy` keeps the type that it was made with; the batch's own parameters count."""
    world = World(ForeignDynamics(d, m).double(), foreign_reward, foreign_critic, 0.9)
    policy = BatchedPolicy(Policy(), 2).double()
    noise = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    gradient = policy_gradient(policy, world, torch.zeros(2, d, dtype=torch.float64), noise)
    assert all(g.dtype == torch.float64 for g in gradient.gradient.values())


def test_a_controller_of_a_policy_with_nan_is_refused():
    policy = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    with torch.no_grad():
        policy[0].weight[0, 0] = torch.nan
    world = World(DiffusionDynamics(3, 2, (8,), steps=2), RewardModel(3, 2, (8,)), TwinCritic(3, 2, (8,)), 0.9)
    with pytest.raises(ValueError, match=r"^policy: expected finite"):
        MPC(policy, world)


@pytest.mark.parametrize("part", ["reward", "critic", "dynamics"])
def test_an_answer_of_nan_is_not_told_to_be_cut_off(world, part):
    def nothing(state, *rest):
        return torch.full(state.shape if part == "dynamics" else state.shape[:1], torch.nan)

    spoiled = replace(world, **{part: with_noise(nothing)})
    for method in (Adjoint(), Autograd()):
        with pytest.raises(ValueError, match=f"^{part}: expected finite values, got NaN"):
            policy_gradient(Policy(), spoiled, torch.zeros(d), torch.zeros(2, 2, 2), method=method)


@pytest.mark.parametrize("make", [MPC, Planner])
@pytest.mark.parametrize("part", ["policy", "dynamics", "reward", "critic"])
def test_parameters_that_are_not_finite_are_named(make, part, caplog):
    parts = {
        "policy": Actor(d, m, (8,)),
        "dynamics": DiffusionDynamics(d, m, (8,), steps=2),
        "reward": RewardModel(d, m, (8,)),
        "critic": TwinCritic(d, m, (8,)),
    }
    with torch.no_grad():
        next(x for x in parts[part].modules() if type(x) is MLP).layers[1].bias[0] = torch.inf
    policy, told = parts.pop("policy"), rf"^{part}: expected finite parameters, got .* in \S*mlp\.layers\.1\.bias; "
    world = World(**parts, discount=0.9)
    if part == "policy":
        with pytest.raises(ValueError, match=told):
            make(policy, world)
    else:  # it acts as it was trained
        make(policy, world)
        assert len([x for x in caplog.messages if re.match(told, x)]) == 1
