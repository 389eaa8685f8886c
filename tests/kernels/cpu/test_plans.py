"""Plans of the CPU kernels: kept between calls, and given up or brought up to date whatever a user does to the networks."""

import copy
from dataclasses import replace

import pytest
import torch

from jacrec import Actor, Adjoint, Auto, Autograd, BatchedPolicy, Forward, mpc_update, policy_gradient
from jacrec.kernels.cpu.gradient import prepared
from jacrec.models.activations import ACTIVATIONS
from jacrec.models.networks import Affine, LayerNorm
from tests.cpu_cases import FUSED, problem_of
from tests.oracles import relative_error


@pytest.fixture(autouse=True)
def _fresh():
    prepared.forget()


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
    other_target,
    add_norms,
    delete_norms,
    empty_and_fill,
]


@pytest.mark.parametrize("hidden", [(32, 32), (33, 33)], ids=["whole vectors", "padded"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_prepared_plan_is_given_up_or_brought_up_to_date(change, hidden):
    problem = problem_of(hidden=hidden)
    before = policy_gradient(*problem, method=FUSED).gradient
    assert prepared.kept(*problem[:3]) is not None
    change(*problem[:2])
    expected, got = (policy_gradient(*problem, method=method).gradient for method in (Autograd(), FUSED))
    assert relative_error(got, expected) < 1e-12
    assert relative_error({k: before[k] for k in expected}, expected) > 1e-6


def own_forward(policy, world):
    del policy.config
    policy.forward = lambda state: torch.tanh(state[..., :3])


def same_name(policy, world):
    policy.mlp.act = replace(ACTIVATIONS["tanh"], name=policy.mlp.act.name)


@pytest.mark.parametrize(("change", "words"), [(own_forward, "as it was made"), (same_name, "activation of the policy")])
def test_a_plan_is_given_up_where_the_kernels_no_longer_serve(change, words):
    problem = problem_of(hidden=(32, 32))
    policy_gradient(*problem, method=FUSED)
    change(*problem[:2])
    with pytest.raises(ValueError, match=words):
        policy_gradient(*problem, method=FUSED)
    expected, got = (policy_gradient(*problem, method=method).gradient for method in (Autograd(), Auto()))
    assert relative_error(got, expected) < 1e-12


def test_plans_do_not_pile_up():
    for seed in range(prepared.KEPT + 3):
        policy_gradient(*problem_of(hidden=(32, 32), seed=seed), method=FUSED)
    assert len(prepared._plans) == prepared.KEPT


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


def other_stack(policy, world):
    world.reward.mlp = type(world.reward.mlp)(14, 1, (16, 16), stack=2).double()


def other_activation(policy, world):
    world.reward.mlp.act = ACTIVATIONS["tanh"]


def other_eps(policy, world):
    for norm in world.critic.mlp.norms:
        norm.eps = 1e-2


def one_scale_for_all(policy, world):
    world.dynamics.state_std = torch.tensor(2.0, dtype=torch.float64)


def other_forward(policy, world):
    before = policy.forward
    policy.forward = lambda state: 0.1 * before(state)


def tied(policy, world):
    policy.mlp.layers[1].weight = policy.mlp.layers[2].weight


def one_more_parameter(policy, world):
    policy.extra = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    "change", [other_width, other_activation, other_eps, one_scale_for_all, other_forward, tied, one_more_parameter]
)
def test_networks_that_are_not_what_they_say(change):
    """The fused kernels refuse them, before and after a plan was made; Auto and Adjoint are right all the same."""
    problem = problem_of(hidden=(32, 32, 32) if change is tied else (32, 32))
    policy_gradient(*problem, method=FUSED)
    change(*problem[:2])
    with pytest.raises(ValueError, match='kernel="fused"'):
        policy_gradient(*problem, method=FUSED)
    expected = policy_gradient(*problem, method=Autograd()).gradient
    for method in (Auto(), Adjoint(), Forward()):
        assert relative_error(policy_gradient(*problem, method=method).gradient, expected) < 1e-12


@pytest.mark.parametrize(
    ("change", "words"), [(other_sizes, "as it says: 11 to 40"), (other_stack, "layers of the reward are not")]
)
def test_sizes_that_are_not_what_they_say(change, words):
    problem = problem_of(hidden=(16, 16))
    change(*problem[:2])
    with pytest.raises(ValueError, match=words):
        policy_gradient(*problem, method=FUSED)


def test_a_stack_of_policies_of_another_number_is_refused():
    policy, world, state, noise = problem_of(N=3, batched=True, hidden=(16, 16))
    policy.mlp = BatchedPolicy(Actor(11, 3, (16, 16)).double(), 2).mlp
    with pytest.raises(ValueError, match="layers of the policy are not"):
        policy_gradient(policy, world, state, noise, method=FUSED)


def test_a_layer_of_another_dtype_is_refused():
    problem = problem_of(hidden=(32, 32))
    problem[1].dynamics.denoiser.mlp.layers[1].float()
    with pytest.raises(ValueError, match=r"float64 on the CPU like the state, got torch\.float32"):
        policy_gradient(*problem, method=FUSED)
