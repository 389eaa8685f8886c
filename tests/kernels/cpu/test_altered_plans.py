"""Modules that are altered after a plan was made."""

import pytest
import torch

from jacrec import Actor, Adjoint, Auto, Autograd, BatchedPolicy, Forward, policy_gradient
from jacrec.models.activations import ACTIVATIONS
from jacrec.models.networks import LayerNorm
from tests.cpu_cases import FUSED, problem_of
from tests.kernels.cpu.test_plans import other_sizes, other_width
from tests.oracles import relative_error


def other_stack(policy, world):
    world.reward.mlp = type(world.reward.mlp)(14, 1, (16, 16), stack=3).double()


def other_activation(policy, world):
    world.reward.mlp.act = ACTIVATIONS["tanh"]


def other_eps(policy, world):
    world.critic.mlp.norms[0].eps = 1e-2


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
    if change is other_width:  # nothing can compute with it
        with pytest.raises(ValueError, match=r"^reward: expected a "):
            policy_gradient(*problem, method=FUSED)
        return
    with pytest.raises(ValueError, match='kernel="fused"'):
        policy_gradient(*problem, method=FUSED)
    expected = policy_gradient(*problem, method=Autograd()).gradient
    for method in (Auto(), Adjoint(), Forward()):
        assert relative_error(policy_gradient(*problem, method=method).gradient, expected) < 1e-12


def test_another_eps_of_all_layer_norms_is_served():
    problem = problem_of(hidden=(32, 32), layer_norm=True)
    before = policy_gradient(*problem, method=FUSED)
    for module in (problem[0], problem[1].dynamics, problem[1].reward, problem[1].critic):
        for norm in module.modules():
            if isinstance(norm, LayerNorm):
                norm.eps = 1e-2
    expected = policy_gradient(*problem, method=Autograd())
    for method in (FUSED, Forward(kernel="fused")):
        got = policy_gradient(*problem, method=method)
        assert relative_error(got.gradient, expected.gradient) < 1e-12
        assert relative_error(got.gradient, before.gradient) > 1e-4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_sizes, r"^policy: expected a weight of shape \(40, 16\).*got \(3, 16\)"),
        (other_stack, r"^reward: expected to take reward\(state, action\) of shapes .*, got an error"),
    ],
)
def test_sizes_that_are_not_what_they_say(change, words):
    problem = problem_of(hidden=(16, 16))
    change(*problem[:2])
    with pytest.raises(ValueError, match=words):
        policy_gradient(*problem, method=FUSED)


def test_a_stack_of_policies_of_another_number_is_refused():
    policy, world, state, noise = problem_of(N=3, batched=True, hidden=(16, 16))
    policy.mlp = BatchedPolicy(Actor(11, 3, (16, 16)).double(), 2).mlp
    with pytest.raises(ValueError, match=r"policy: expected mlp.layers.0.weight of shape \(3, 16, 11\).* got \(2, 16, 11\)"):
        policy_gradient(policy, world, state, noise, method=FUSED)


def test_a_layer_of_another_dtype_is_refused():
    problem = problem_of(hidden=(32, 32))
    problem[1].dynamics.denoiser.mlp.layers[1].float()
    with pytest.raises(ValueError, match=r"^dynamics: .*dtype"):
        policy_gradient(*problem, method=FUSED)
