"""Plans of the CPU kernels: kept between calls, and given up or brought up to date whatever a user does to the networks."""

import copy
import gc
import itertools
from dataclasses import replace

import pytest
import torch

from jacrec import MPC, Auto, Autograd, MPCConfig, mpc_update, policy_gradient
from jacrec.kernels.cpu.gradient import plans
from jacrec.kernels.store import LruStore
from jacrec.models.activations import ACTIVATIONS
from jacrec.models.networks import Affine, LayerNorm
from tests.cpu_cases import FUSED, problem_of
from tests.oracles import relative_error


@pytest.fixture(autouse=True)
def _fresh():
    plans.forget()


@pytest.mark.parametrize("hidden", [(33, 33), (32, 32)], ids=["padded", "whole vectors"])
@pytest.mark.parametrize("change", ["in place", "through .data", "load_state_dict"])
def test_changed_weights_are_seen(change, hidden):
    problem = problem_of(hidden=hidden)
    policy_gradient(*problem, method=FUSED)
    for module in (problem[0], problem[1].dynamics, problem[1].reward, problem[1].critic):
        if change == "load_state_dict":
            module.load_state_dict({k: v * 1.1 if v.is_floating_point() else v for k, v in module.state_dict().items()})
            continue
        for p in module.parameters():
            (p.detach() if change == "in place" else p.data).mul_(1.1)
    expected, got = (policy_gradient(*problem, method=method) for method in (Autograd(), FUSED))
    assert relative_error(got.gradient, expected.gradient) < 1e-12


def replace_layer(policy, world):
    policy.mlp.layers[1] = copy.deepcopy(policy.mlp.layers[1])
    policy.mlp.layers[1].weight.data.mul_(1.3)


def replace_parameter(policy, world):
    layer = world.reward.mlp.layers[0]
    layer.weight = torch.nn.Parameter(1.3 * layer.weight.detach())


def move_data(policy, world):
    world.dynamics.denoiser.mlp.layers[1].weight.data = 1.3 * world.dynamics.denoiser.mlp.layers[1].weight.data


def turn_data(policy, world):
    policy.mlp.layers[1].weight.data = policy.mlp.layers[1].weight.data.T


def rescale(policy, world):
    world.dynamics.set_scales(torch.ones(11), 2 * torch.ones(11), torch.ones(11), 3 * torch.ones(11))


def other_steps(policy, world):
    world.dynamics.c_u = [1.1 * c for c in world.dynamics.c_u]


def other_steps_in_place(policy, world):
    world.dynamics.c_u[:] = [1.1 * c for c in world.dynamics.c_u]


def other_times_in_place(policy, world):
    world.dynamics.times = tuple(t + 1 for t in world.dynamics.times)
    world.dynamics.time.add_(1)


def other_table(policy, world):
    """Another table of parameters, with equal biases."""
    layer = world.reward.mlp.layers[-1]
    layer._parameters = copy.deepcopy(layer._parameters)
    layer._parameters["weight"].data.mul_(1.3)


def other_target(policy, world):
    world.dynamics.target = "state"


def add_norms(policy, world):
    world.reward.mlp.norms.extend([LayerNorm(width).double() for width in world.reward.mlp.hidden])


def delete_norms(policy, world):
    del world.critic.mlp.norms[:]


def empty_and_fill(policy, world):
    layer = policy.mlp.layers[1]
    weight = layer.weight
    del layer.weight
    layer.weight = torch.nn.Parameter(1.3 * weight.detach())


def other_attributes(policy, world):
    layer = policy.mlp.layers[1]
    layer.__dict__.update(copy.deepcopy(layer).__dict__)
    layer._parameters["weight"].data.mul_(1.3)


def stridden_bias(policy, world):
    for layer in (policy.mlp.layers[0], world.dynamics.denoiser.mlp.layers[1], world.reward.mlp.layers[0]):
        layer.bias.data = torch.stack([1.3 * layer.bias.data, layer.bias.data], 1)[:, 0]


def one_scale(policy, world):
    world.reward.state_std = torch.full((1,), 1.7, dtype=torch.float64).expand(11)


CHANGES = [
    other_attributes,
    stridden_bias,
    one_scale,
    replace_layer,
    replace_parameter,
    move_data,
    turn_data,
    rescale,
    other_steps,
    other_steps_in_place,
    other_times_in_place,
    other_table,
    other_target,
    add_norms,
    delete_norms,
    empty_and_fill,
]


@pytest.mark.parametrize("hidden", [(32, 32), (33, 33)], ids=["whole vectors", "padded"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_plan_is_given_up_or_brought_up_to_date(change, hidden):
    problem = problem_of(hidden=hidden)
    before = policy_gradient(*problem, method=FUSED).gradient
    assert plans.kept_plan(*problem[:3]) is not None
    change(*problem[:2])
    expected, got = (policy_gradient(*problem, method=method).gradient for method in (Autograd(), FUSED))
    assert relative_error(got, expected) < 1e-12
    assert relative_error({k: before[k] for k in expected}, expected) > 1e-6


def own_forward(policy, world):
    del policy.config
    policy.forward = lambda state: torch.tanh(policy.mlp(state))


def same_name(policy, world):
    policy.mlp.act = replace(ACTIVATIONS["tanh"], name=policy.mlp.act.name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (own_forward, "policy: expected the methods of Actor, got its own forward"),
        (same_name, "policy: expected mlp.act to be the 'relu'"),
    ],
)
def test_a_plan_is_given_up_where_the_kernels_no_longer_serve(change, words):
    problem = problem_of(hidden=(32, 32))
    policy_gradient(*problem, method=FUSED)
    change(*problem[:2])
    with pytest.raises(ValueError, match=words):
        policy_gradient(*problem, method=FUSED)
    expected, got = (policy_gradient(*problem, method=method).gradient for method in (Autograd(), Auto()))
    assert relative_error(got, expected) < 1e-12


def hook_of_another_table(module):
    module._forward_hooks = type(module._forward_hooks)()
    hook(module)


def hook(module):
    module.register_forward_hook(lambda module, inputs, output: 0.5 * output)


@pytest.mark.parametrize("change", [hook_of_another_table, hook])
@pytest.mark.parametrize("where", ["policy", "a layer of the policy", "reward", "a layer of the critic"])
def test_a_hook_is_seen_wherever_it_is(change, where):
    problem = problem_of(hidden=(32, 32))
    policy, world = problem[:2]
    before = policy_gradient(*problem, method=FUSED).gradient
    modules = policy, policy.mlp.layers[1], world.reward, world.critic.mlp.layers[-1]
    change(dict(zip(("policy", "a layer of the policy", "reward", "a layer of the critic"), modules, strict=True))[where])
    assert plans.kept_plan(*problem[:3]) is None
    expected, got = (policy_gradient(*problem, method=method).gradient for method in (Autograd(), Auto()))
    assert relative_error(got, expected) < 1e-12
    assert relative_error({k: before[k] for k in expected}, expected) > 1e-6


def reinterpreted(x):
    x.data = x.data.view(torch.int64)


def narrower(x):
    x.data = x.data[..., :-1]


def same_numbers_elsewhere(x):
    x.data = x.data.clone()


def turned_in_place(x):
    x.transpose_(-1, -2)


@pytest.mark.parametrize(
    ("where", "change"),
    [
        *itertools.product(["policy", "critic", "scales"], [reinterpreted, narrower, same_numbers_elsewhere]),
        ("policy", turned_in_place),
        ("critic", turned_in_place),
    ],
)
def test_a_tensor_of_another_address_size_stride_or_dtype_gives_the_plan_up(change, where):
    problem = problem_of(hidden=(32, 32))
    policy, world = problem[:2]
    tensor = {
        "policy": policy.mlp.layers[1].weight,
        "critic": world.critic.mlp.layers[1].weight,
        "scales": world.dynamics.state_mean,
    }[where].requires_grad_(False)
    policy_gradient(*problem, method=FUSED)
    assert plans.kept_plan(*problem[:3]) is not None
    with torch.no_grad():
        change(tensor)
    assert plans.kept_plan(*problem[:3]) is None


@pytest.mark.parametrize("N", [1, 20])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", ["state", "noise"])
def test_inputs_that_are_not_finite_are_named_with_a_kept_plan(which, value, N):
    policy, world, state, noise = problem_of(N=N, hidden=(16, 16))
    policy_gradient(policy, world, state, noise, method=FUSED)
    (state if which == "state" else noise).view(-1)[-1] = value
    with pytest.raises(ValueError, match=f"^{which}: expected finite values"):
        policy_gradient(policy, world, state, noise, method=FUSED)


def test_a_state_of_too_many_axes_is_refused_with_a_kept_plan():
    policy, world, state, noise = problem_of(hidden=(16, 16))
    policy_gradient(policy, world, state, noise, method=FUSED)
    for wrong in (state.reshape(1, 1, -1), state.new_empty(0, state.shape[-1])):
        with pytest.raises(ValueError, match=r"^state: expected shape \(d,\) or \(N, d\)"):
            policy_gradient(policy, world, wrong, noise, method=FUSED)


def counts():
    """How many plans there are: of pairs, policies and worlds."""
    gc.collect()
    return tuple(len(store) for store in (plans._plans, plans._policies, plans._worlds))


def test_plans_go_with_the_modules_that_they_are_of():
    for seed in range(5):
        policy_gradient(*problem_of(hidden=(32, 32), seed=seed), method=FUSED)
    assert counts() == (0, 0, 0)
    problem = problem_of(hidden=(32, 32))
    policy_gradient(*problem, method=FUSED)
    assert counts() == (1, 1, 1)
    policy_gradient(copy.deepcopy(problem[0]), *problem[1:], method=FUSED)
    assert counts() == (1, 1, 1)
    problem = problem[0], *problem[2:]  # the world is dropped
    assert counts() == (0, 1, 0)


def test_as_many_plans_are_kept_as_were_used_last(monkeypatch):
    monkeypatch.setattr(plans._plans, "limit", 3)
    monkeypatch.setattr(plans._worlds, "limit", 2)
    problems = [problem_of(hidden=(32, 32), seed=seed) for seed in range(5)]
    for problem in problems:
        policy_gradient(*problem, method=FUSED)
    assert counts() == (3, 5, 2)
    assert [plans.kept_plan(*problem[:3]) is not None for problem in problems] == [False, False, True, True, True]


def test_controllers_of_one_world_share_its_plan(monkeypatch):
    """Ten in turn cost ten times one: no plan is made again."""
    policy, world, _, _ = problem_of(hidden=(32, 32), dtype=torch.float32)
    made = []
    for kind in (plans.Plan, plans.PolicyPlan, plans.WorldPlan):

        def make(self, *arguments, kind=kind, before=kind.__init__):
            made.append(kind)
            before(self, *arguments)

        monkeypatch.setattr(kind, "__init__", make)
    controllers = [MPC(policy, world, MPCConfig(horizon=2, particles=4)) for _ in range(10)]
    for _ in range(3):
        for controller in controllers:
            controller.act(torch.zeros(11))
    assert [made.count(kind) for kind in (plans.Plan, plans.PolicyPlan, plans.WorldPlan)] == [10, 10, 1]
    assert counts() == (10, 10, 1)
    del controllers, controller
    assert counts() == (0, 0, 1)


def test_a_store_keeps_what_was_used_last_while_its_owners_live():
    class Owner:
        pass

    store, owners = LruStore(2), [Owner() for _ in range(3)]
    for i, owner in enumerate(owners):
        store.put(i, f"thing {i}", (owner, owners[-1]))
    assert [store.get(i) for i in range(3)] == [None, "thing 1", "thing 2"]
    assert store.get(1) == "thing 1"
    store.make_room()
    assert [store.get(i) for i in range(3)] == [None, "thing 1", None]
    del owner
    owners.clear()
    gc.collect()
    assert len(store) == 0
    store.put(1, "a thing without owners")
    assert store.get(1) == "a thing without owners"
    store.clear()
    assert len(store) == 0


def test_an_owner_may_die_while_the_store_is_used():
    """In any thread, and in this one between two looks: the collector runs when it likes."""

    class Owner:
        def __init__(self):
            self.myself = self  # only the collector finds it

    store = LruStore(50)
    for i in range(2000):
        store.put(i % 60, i, (Owner(),))
        store.get(i % 7)
    gc.collect()
    assert len(store) == 0


def test_weights_that_are_not_contiguous():
    problem = problem_of(hidden=(16, 16))
    for module in (problem[0], problem[1].dynamics, problem[1].reward):
        for p in module.parameters():
            if p.dim() == 2:
                p.data = p.detach().T.contiguous().T
    expected, got = (policy_gradient(*problem, method=method) for method in (Autograd(), FUSED))
    assert relative_error(got.gradient, expected.gradient) < 1e-12


@pytest.mark.parametrize("where", ["policy", "dynamics", "reward", "critic"])
def test_what_is_not_finite_shows(where):
    policy, world, state, noise = problem_of(N=2, batched=True, layer_norm=False)
    module = policy if where == "policy" else getattr(world, where)
    next(iter(module.parameters())).data[..., 0, 0] = torch.nan
    before = {k: p.detach().clone() for k, p in policy.named_parameters()}
    step = mpc_update(policy, world, state, noise=noise, lr=1e-2, method=FUSED)
    assert not step.accepted.any()
    assert all(torch.equal(p.nan_to_num(), before[k].nan_to_num()) for k, p in policy.named_parameters())


def other_width(policy, world):
    world.reward.mlp.layers[0] = Affine(14, 64).double()
    world.reward.mlp.layers[1] = Affine(64, 32).double()
    world.reward.mlp.initialise()


def other_sizes(policy, world):
    policy.mlp.out_dim = 40
