"""What the Triton kernels keep of a policy and a world between calls, and that every change to them is seen."""

import copy
import dataclasses
from unittest import mock

import pytest
import torch
from torch import nn

from jacrec import Autograd, BatchedPolicy, RewardModel, TwinCritic, World, policy_gradient
from jacrec.engine.gradient import adjoint_gradient
from jacrec.engine.problem import Problem
from jacrec.engine.shapes import problem
from jacrec.kernels import automatic, gradient, graphs, kept, rollout, served
from jacrec.models.activations import ACTIVATIONS
from tests.oracles import relative_error
from tests.strategies import foreign_reward, shake
from tests.triton_cases import DEVICE, imagine

NETWORK = dict(hidden=(7, 7), layer_norm=True)


@pytest.fixture(params=[False, True], ids=["one policy", "batched"])
def args(request):
    kept.forget()
    yield imagine(2, 2, 1, request.param, NETWORK, 0)
    kept.forget()


def test_an_unchanged_problem_is_examined_once(args):
    policy, world, state, noise = args
    with mock.patch.object(served, "unsupported_reason", side_effect=served.unsupported_reason) as examined:
        first = kept.facts(problem(*args))
        for change in range(3):
            with torch.no_grad():
                for parameter in [*policy.parameters(), *world.critic.parameters()]:
                    parameter.mul_(1.1)
            p = problem(policy, World(world.dynamics, world.reward, world.critic, 0.8), state + change, noise)
            assert kept.facts(p) is first
            assert first.unsupported_reason(p) is None
        assert examined.call_count == 1
        assert "noise: expected torch.float64" in first.unsupported_reason(
            problem(*args).__class__(policy, world, state, noise.float(), False)
        )
        assert examined.call_count == 2


def test_the_modules_are_compared_once_in_a_call(args):
    p = problem(*args)
    gradient.auto_gradient(p)
    with mock.patch.object(kept.Snapshot, "unchanged", autospec=True, side_effect=kept.Snapshot.unchanged) as compared:
        gradient.auto_gradient(p)
    assert compared.call_count == 1


def replace_layer(policy, world):
    world.critic.mlp.layers[0] = world.critic.mlp.layers[0].__class__(5, 7, stack=2).double()


def replace_parameter(policy, world):
    mlp = policy.get_submodule("mlp")
    mlp.layers[0].weight = nn.Parameter(mlp.layers[0].weight.detach().clone())


def move_storage(policy, world):
    weight = world.reward.mlp.layers[0].weight
    weight.data = weight.detach().clone()


def change_strides(policy, world):
    world.dynamics.out_std.data = torch.ones(6, dtype=torch.float64)[::2]


def change_coefficient(policy, world):
    world.dynamics.c_u[0] *= 2


def change_activation(policy, world):
    world.reward.mlp.act = ACTIVATIONS["tanh"]


def change_eps(policy, world):
    world.dynamics.denoiser.mlp.norms[0].eps = 1e-3


def add_hook(policy, world):
    world.reward.mlp.register_forward_hook(lambda *_: None)


def add_method(policy, world):
    world.dynamics.denoiser.mlp.after_first = lambda z: z


def add_parameter(policy, world):
    policy.extra = nn.Parameter(torch.zeros(1))


def add_module(policy, world):
    world.critic.mlp.layers[0].extra = nn.Linear(1, 1)


def replace_parameters(policy, world):
    layer = world.reward.mlp.layers[1]
    layer._parameters = dict(layer._parameters)


def replace_hooks(policy, world):
    mlp = policy.get_submodule("mlp")
    mlp._forward_pre_hooks = type(mlp._forward_pre_hooks)()


CHANGES = [value for name, value in globals().items() if name.split("_")[0] in ("replace", "move", "change", "add")]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_of_modules_are_seen(args, change):
    policy, world, state, _ = args
    found = kept.facts(problem(*args))
    assert kept.kept_plan(policy, world, state) is found
    change(policy, world)
    assert kept.kept_plan(policy, world, state) is None


def tensors(policy, world):
    """(module, dict of the module, name) of every parameter and buffer."""
    for module in (policy, world.dynamics, world.reward, world.critic):
        for part in module.modules():
            for held in (part._parameters, part._buffers):
                numbers = [name for name, value in held.items() if value is not None and value.is_floating_point()]
                yield from ((part, held, name) for name in numbers)


def in_place(part, held, name):
    with torch.no_grad():
        held[name].mul_(1.1).add_(0.01)


def another_tensor(part, held, name):
    old, new = held[name], held[name].detach() * 1.1 + 0.01
    setattr(part, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def another_storage(part, held, name):
    held[name].data = held[name].detach() * 1.1 + 0.01


class Replayed:
    """What a CUDA graph does: computes with the tensors that were there when it was recorded."""

    bytes = 0

    def __init__(self, p, compute, alive):
        self.policy, self.world = copy.deepcopy(p.policy), copy.deepcopy(p.world)
        originals = (p.policy, p.world.dynamics, p.world.reward, p.world.critic)
        shadows = (self.policy, self.world.dynamics, self.world.reward, self.world.critic)
        for original, shadow in zip(originals, shadows, strict=True):
            for kind in ("named_parameters", "named_buffers"):
                found = dict(getattr(original, kind)())
                for name, x in getattr(shadow, kind)():
                    x.data = found[name].data

    def replay(self, p):
        return adjoint_gradient(Problem(self.policy, self.world, p.state, p.noise, p.single))


@pytest.mark.parametrize("change", [in_place, another_tensor, another_storage], ids=lambda change: change.__name__)
def test_a_change_of_any_parameter_reaches_the_next_gradient(args, change):
    policy, world, state, noise = args
    automatic.forget()
    graphs.forget()
    recorded = mock.Mock(side_effect=Replayed)
    patches = [
        mock.patch.object(graphs, "recordable", side_effect=lambda p: kept.facts(p) is not None),
        mock.patch.object(graphs, "record", recorded),
        mock.patch.object(automatic, "disagreement", return_value=None),
    ]
    with patches[0], patches[1], patches[2]:
        gradient.auto_gradient(problem(policy, world, state, noise))
        everything = list(tensors(policy, world))
        for count, place in enumerate(everything, 1):
            change(*place)
            assert (kept.kept_plan(policy, world, state) is None) == (change is not in_place)
            p = problem(policy, world, state, noise)
            assert relative_error(gradient.auto_gradient(p).gradient, adjoint_gradient(p).gradient) < 1e-12
            assert recorded.call_count == 1 + (0 if change is in_place else count)
    assert len(everything) > 40
    graphs.forget()
    automatic.forget()


def test_third_party_parts_are_never_kept(args):
    policy, world, state, noise = args
    p = problem(policy, World(world.dynamics, foreign_reward, world.critic, 0.9), state, noise)
    assert kept.facts(p) is None
    assert kept.kept_plan(p.policy, p.world, p.state) is None


def test_the_number_kept_is_bounded():
    kept.forget()
    for seed in range(kept.MOST + 2):
        kept.facts(problem(*imagine(1, 1, 0, False, dict(hidden=(3,)), seed)))
    assert len(kept._facts) == kept.MOST
    kept.forget()


@pytest.mark.parametrize("batched", [False, True])
def test_own_networks_of_known_layers(batched):
    """A policy of torch's own layers, and views of such networks, are served as jacrec's; a change of a layer is seen."""
    _, world, state, noise = imagine(2, 2, 1, False, dict(hidden=(7,)), 0)

    def net(inputs, outputs, *last):
        made = nn.Sequential(nn.Linear(inputs, 7), nn.SiLU(), nn.LayerNorm(7), nn.Linear(7, outputs), *last).double().to(DEVICE)
        shake(made)
        return made

    one, value = net(3, 2, nn.Tanh()), [net(5, 1) for _ in range(3)]
    policy = BatchedPolicy(one, 2) if batched else one
    critic = TwinCritic.from_modules(*value[1:], state_dim=3)
    world = dataclasses.replace(world, reward=RewardModel.from_module(value[0], state_dim=3), critic=critic)
    architecture = policy.template if isinstance(policy, BatchedPolicy) else policy
    for eps in (1e-5, 1e-2):
        architecture[2].eps = eps
        p = problem(policy, world, state, noise)
        assert kept.facts(p) is not None
        exact = policy_gradient(policy, world, state, noise, method=Autograd())
        for compute in (rollout.rollout_gradient, gradient.forward_gradient, gradient.adjoint_gradient):
            got = compute(p)
            assert list(got.gradient) == list(exact.gradient)
            assert relative_error(got.gradient, exact.gradient) < 1e-10
