"""What stands around a network becomes part of its weights; the fused kernels serve the result."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from jacrec import Adjoint, Autograd, DeterministicDynamics, RewardModel, World, policy_gradient
from jacrec.adapters.layers import Scaling, as_actor, as_critic, read_layers

D, M = 5, 2


def sequential(inputs, outputs, activation=nn.ReLU, norm=None, *last):
    torch.manual_seed(inputs)
    layers = []
    for width in (inputs, 16):
        layers += [nn.Linear(width, 16), activation(), *([] if norm is None else [nn.LayerNorm(16, norm)])]
    net = nn.Sequential(*layers, nn.Linear(16, outputs), *last).double()
    for p in net.parameters():
        p.data.add_(0.3 * torch.randn(p.shape, dtype=p.dtype))
    return net


def scaling(clip=float("inf")):
    return Scaling(torch.linspace(-2.0, 3.0, D), torch.linspace(0.2, 2.0, D), clip)


def scaled(state, s):
    return ((state - s.mean) / s.std).clamp(-s.clip, s.clip)


@pytest.mark.parametrize("clip", [float("inf"), 10.0, 0.5])
@pytest.mark.parametrize("norm", [None, 1e-6, 1e-5, 1e-3])
def test_actor_and_critic_in_float64(clip, norm):
    s, state, action = scaling(clip), 3 * torch.randn(200, D).double(), torch.rand(200, M).double() * 2 - 1
    actor, heads = sequential(D, M, nn.ReLU, norm, nn.Tanh()), [sequential(D + M, 1, nn.ReLU, norm) for _ in range(3)]
    heads[1][0].weight.data.mul_(1.1)
    with double_networks():
        ours = as_actor(read_layers(actor), s)
        scale = torch.tensor([2.0, 0.5])
        critic = as_critic([read_layers(head) for head in heads], s, M, action_scale=scale, reward_scale=0.1)
    if norm is not None and clip < 100:
        assert ours is None
        assert critic is None
        return
    torch.testing.assert_close(ours(state), actor(scaled(state, s)), rtol=1e-11, atol=1e-11)
    inputs = torch.cat([scaled(state, s), action * scale], 1)
    values = torch.stack([head(inputs).squeeze(-1) for head in heads]).amin(0) / 0.1
    torch.testing.assert_close(critic(state, action), values, rtol=1e-11, atol=1e-11)


@contextmanager
def double_networks():
    """New networks have float64 parameters, so that no weight is rounded."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(D, M), nn.Tanh()),
        nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, M), nn.Tanh()),
        nn.Sequential(nn.Linear(D, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, M), nn.Tanh()),
        nn.Sequential(nn.Linear(D, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, M), nn.Tanh()),
        nn.Sequential(nn.Linear(D, 8), nn.GELU("tanh"), nn.Linear(8, M), nn.Tanh()),
        nn.Sequential(nn.Linear(D, 8), nn.LeakyReLU(), nn.Linear(8, M), nn.Tanh()),
        nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, M), nn.Tanh()),
        nn.Sequential(nn.Linear(D, 8), nn.ReLU()),
        nn.Sequential(),
    ],
)
def test_layers_that_cannot_be_expressed(net):
    assert read_layers(net) is None


def test_a_hook_is_not_lost():
    net = sequential(D, M, nn.ReLU, None, nn.Tanh())
    assert read_layers(net) is not None
    net[0].register_forward_hook(lambda module, inputs, output: output + 1)
    assert read_layers(net) is None


def test_random_numbers_go_on_as_before():
    net = read_layers(sequential(D, M, nn.ReLU, None, nn.Tanh()))
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    as_actor(net, scaling())
    assert torch.equal(torch.randn(3), expected)


def test_the_fused_gradient_of_a_clipped_policy():
    s = scaling(1.0)
    actor = as_actor(read_layers(sequential(D, M, nn.ReLU, None, nn.Tanh())), s).double()
    critic = as_critic([read_layers(sequential(D + M, 1))] * 2, s, M).double()
    world = World(DeterministicDynamics(D, M, (16, 16)).double(), RewardModel(D, M, (16, 16)).double(), critic, 0.99)
    state = torch.randn(3, D).double() * 2
    noise = torch.zeros(3, 2, 2, *world.dynamics.noise_shape).double()
    fused = policy_gradient(actor, world, state, noise, method=Adjoint(kernel="fused"))
    plain = policy_gradient(actor, world, state, noise, method=Autograd())
    for name, value in plain.gradient.items():
        torch.testing.assert_close(fused.gradient[name], value, rtol=1e-9, atol=1e-9)
    assert fused.gradient["mlp.layers.0.weight"].abs().max() > 0


def test_a_scaling_that_would_cancel_in_float32_is_left_beside_the_network():
    far = Scaling(torch.full((D,), 500.0), torch.full((D,), 0.005))
    net = read_layers(sequential(D, M, nn.ReLU, None, nn.Tanh()))
    assert as_actor(net, far) is None
    assert as_actor(net, scaling()) is not None
