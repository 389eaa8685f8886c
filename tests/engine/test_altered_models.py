"""Altered models: whatever is done to a policy or a world, the gradient is the right one or the error names the part."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from jacrec import (
    MPC,
    Actor,
    Adjoint,
    Auto,
    Autograd,
    DiffusionDynamics,
    EnsembleDynamics,
    FlowDynamics,
    MPCConfig,
    MultiStepDynamics,
    RewardModel,
    TwinCritic,
    World,
    policy_gradient,
)
from jacrec.models.networks import MLP
from tests.conftest import property_cases
from tests.engine.alterations import alter
from tests.strategies import cases

d, m = 4, 2


@pytest.mark.slow
@property_cases(0.04)
@given(case=cases(max_H=2, max_M=2), data=st.data())
def test_an_altered_model_has_its_gradient_or_an_error_that_names_the_part(case, data):
    alter(case, data.draw)


def wider(mlp):
    mlp.layers[1], mlp.layers[2] = resized(mlp.layers[1], -2, 16), resized(mlp.layers[2], -1, 16)


def no_last(mlp):
    mlp.layers = mlp.layers[:2]


CHANGES = {
    "wider": wider,
    "narrower": lambda mlp: mlp.layers.__setitem__(0, resized(mlp.layers[0], -2, 4)),
    "in": lambda mlp: mlp.layers.__setitem__(0, resized(mlp.layers[0], -1, 40)),
    "out": lambda mlp: mlp.layers.__setitem__(2, resized(mlp.layers[2], -2, 7)),
    "fewer": no_last,
    "no bias": lambda mlp: mlp.layers[1]._parameters.update(bias=None),
    "told": lambda mlp: setattr(mlp, "hidden", (8, 16)),
    "double": lambda mlp: mlp.layers[1].double(),
}


@pytest.mark.parametrize("method", [Autograd(), Adjoint()])
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("make", [EnsembleDynamics, FlowDynamics, MultiStepDynamics])
def test_models_without_a_bias_or_their_dimensions_are_named(make, layer, method):
    """Torch computes without a bias; the hand-written derivatives need it."""
    own = World(make(d, m, (8, 8)), RewardModel(d, m, (8,)), TwinCritic(d, m, (8,)), 0.9)
    noise = torch.zeros(2, 2, *own.dynamics.noise_shape)
    own.dynamics.state_dim = None
    with pytest.raises(ValueError, match=r"^dynamics: expected an integer as its state_dim, got None|^noise: "):
        policy_gradient(Actor(d, m, (8,)), own, torch.zeros(d), noise, method=method)
    own.dynamics.state_dim = d
    mlp = next(x for x in own.dynamics.modules() if type(x) is MLP)
    mlp.layers[layer]._parameters["bias"] = None
    with pytest.raises(ValueError, match=r"^dynamics: expected a bias of shape .*got None"):
        policy_gradient(Actor(d, m, (8,)), own, torch.zeros(d), noise, method=method)


@pytest.mark.parametrize("horizon", [0, 2])
@pytest.mark.parametrize("method", [Auto(), Adjoint(), Autograd()])
@pytest.mark.parametrize(
    ("part", "key", "value"),
    [("", "action_dim", None), ("", "times", ()), ("denoiser", "action_dim", m + 1), ("denoiser", "state_dim", None)],
)
def test_a_chain_that_is_not_what_it_says_is_named_or_not_used(horizon, method, part, key, value):
    own = World(DiffusionDynamics(d, m, (8,), steps=2), RewardModel(d, m, (8,)), TwinCritic(d, m, (8,)), 0.9)
    setattr(own.dynamics.get_submodule(part), key, value)
    noise = torch.zeros(2, horizon, *own.dynamics.noise_shape)
    try:
        policy_gradient(Actor(d, m, (8,)), own, torch.zeros(d), noise, method=method)
    except ValueError as error:
        assert str(error).startswith("dynamics: expected")  # noqa: PT017
    else:
        assert not horizon


def resized(layer, axis, size):
    """A layer with another width along an axis of its weight."""
    shape = list(layer.weight.shape)
    shape[axis] = size
    other = copy.deepcopy(layer)
    other.weight = nn.Parameter(0.1 * torch.ones(shape))
    other.bias = nn.Parameter(torch.zeros(shape[:-1]))
    return other


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("method", ["auto", "adjoint", "autograd"])
@pytest.mark.parametrize("part", ["policy", "dynamics", "reward", "critic"])
@pytest.mark.parametrize("change", CHANGES)
def test_layers_replaced_between_two_decisions_are_named(batch, method, part, change):
    torch.manual_seed(0)
    own = World(DiffusionDynamics(d, m, (8, 8), steps=2), RewardModel(d, m, (8, 8)), TwinCritic(d, m, (8, 8)), 0.9)
    controller = MPC(Actor(d, m, (8, 8)), own, MPCConfig(horizon=2, particles=2, method=method), batch=batch)
    observation = torch.zeros((d,) if batch is None else (batch, d))
    controller.act(observation)
    altered = controller.policy if part == "policy" else getattr(controller.world, part)
    CHANGES[change](next(x for x in altered.modules() if type(x) is MLP))
    with pytest.raises(ValueError, match=f"^{part}: expected "):
        controller.act(observation)
