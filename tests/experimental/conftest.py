"""A small policy and world in float64, and comparisons of parameters."""

import pytest
import torch

from jacrec import Actor, DiffusionDynamics, RewardModel, TwinCritic, World
from tests.strategies import shake

d, m = 4, 2


def parameters(policy):
    return {k: p.detach().clone() for k, p in policy.named_parameters()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def setup():
    torch.manual_seed(0)
    policy = Actor(d, m, (8, 8), layer_norm=True)
    world = World(DiffusionDynamics(d, m, (8,), steps=3), RewardModel(d, m, (8,)), TwinCritic(d, m, (8,)), 0.9)
    for module in (policy, world.dynamics, world.reward, world.critic):
        module.double()
        shake(module)
    return policy, world
