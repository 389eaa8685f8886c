"""Warnings name the user's line."""

import inspect
import warnings

import numpy as np
import torch
from torch import nn

from jacrec import MPC, MPCConfig, RewardModel, TwinCritic, World
from tests.strategies import ForeignDynamics


def test_a_warning_from_deep_inside_points_at_the_line_that_called_jacrec():
    world = World(ForeignDynamics(3, 2), RewardModel(3, 2, (8,)), TwinCritic(3, 2, (8,)), 0.9)
    policy = nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad():
        policy[0].bias.fill_(3.0)
    mpc = MPC(policy, world, MPCConfig(horizon=1, particles=2))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        mpc.act(np.zeros(3))
        line = inspect.currentframe().f_lineno - 1
    assert [(w.filename, w.lineno) for w in found] == [(__file__, line)]
