"""A world of parts that are not jacrec's, for modules whose states have 4 components and actions 2."""

import pytest
import torch

from jacrec import World
from tests.strategies import ForeignDynamics, foreign_critic, foreign_reward


@pytest.fixture
def world():
    torch.manual_seed(0)
    return World(ForeignDynamics(4, 2), foreign_reward, foreign_critic, 0.9)
