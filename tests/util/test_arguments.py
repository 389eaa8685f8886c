"""Integers and tuples of public constructors: anything else is one sentence that names the argument."""

import inspect
from dataclasses import fields, is_dataclass
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from jacrec import (
    MPC,
    Actor,
    BatchedPolicy,
    Denoiser,
    DeterministicDynamics,
    DiffusionDynamics,
    EnsembleDynamics,
    FlowDynamics,
    MeanFlowDynamics,
    MPCConfig,
    MultiStepDynamics,
    RewardModel,
    TwinCritic,
    World,
)
from jacrec.evaluation.config import EvalConfig, PlayConfig
from jacrec.evaluation.live import LiveConfig
from jacrec.evaluation.rehearsal import RehearsalConfig
from jacrec.evaluation.tuning import TuneConfig
from jacrec.experimental.config import ExperimentalConfig
from jacrec.models.dynamics.sampler import Sampler
from jacrec.online.config import DeployConfig, RefreshConfig, ReplayConfig
from jacrec.planners import Planner, PlannerConfig
from jacrec.training import DynamicsConfig, ReBRACConfig, RewardConfig, TrainConfig

NETWORKS = (
    Actor,
    RewardModel,
    TwinCritic,
    Denoiser,
    DeterministicDynamics,
    DiffusionDynamics,
    EnsembleDynamics,
    FlowDynamics,
    MeanFlowDynamics,
    MultiStepDynamics,
)
CONFIGS = (
    *(MPCConfig, PlannerConfig, PlayConfig, EvalConfig, LiveConfig, RehearsalConfig, TuneConfig, ExperimentalConfig, Sampler),
    *(DeployConfig, RefreshConfig, ReplayConfig, TrainConfig, ReBRACConfig, DynamicsConfig, RewardConfig),
)
NO_COUNTS = ("2", 2.0, True, -1, (2,), np.float32(2), float("nan"), "x")
NO_TUPLES = ("2", 2.0, True, 3, ("2",), (2.5, 3), (True,), np.int64(2))
BASE = {"state_dim": 3, "action_dim": 2, "hidden": (4,)}


def of_type(kind, options):
    """Names of arguments whose type is one of those, or that or None."""
    hints = get_type_hints(kind if is_dataclass(kind) else kind.__init__)
    return [
        n
        for n, hint in hints.items()
        if hint in options or (type(None) in get_args(hint) and set(get_args(hint)) & set(options))
    ]


def refused(name, call, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"{name}(\[\d\])?: expected "):
            call(value)


@pytest.mark.parametrize("kind", NETWORKS)
def test_sizes_of_networks(kind):
    names = of_type(kind, [int])
    assert {"state_dim", "action_dim"} <= set(names)
    for name in names:
        refused(name, lambda value, name=name: kind(**BASE | {name: value}), NO_COUNTS)
    for name in {"hidden", "levels"} & set(inspect.signature(kind).parameters):
        refused(name, lambda value, name=name: kind(**BASE | {name: value}), NO_TUPLES)
    own = kind(np.int64(3), np.int32(2), np.array([4]))
    assert own.config["hidden"] == [4]
    assert {type(own.config[name]) for name in ("state_dim", "action_dim")} == {int}


@pytest.mark.parametrize("kind", CONFIGS)
def test_fields_of_settings(kind):
    for name in of_type(kind, [int]):
        refused(name, lambda value, name=name: kind(**{name: value}), [x for x in NO_COUNTS if x != -1])
    for name in of_type(kind, [bool]):
        refused(name, lambda value, name=name: kind(**{name: value}), ("yes", 2.0, 3, ()))
    for name in of_type(kind, [float]):
        refused(name, lambda value, name=name: kind(**{name: value}), ("1", True, (), np.ones(1)))
    for field in fields(kind):
        refused(field.name, lambda value, name=field.name: kind(**{name: value}), (object(),))


@pytest.mark.parametrize("make", [MPC, Planner, BatchedPolicy])
def test_numbers_of_environments(make):
    world = World(DeterministicDynamics(3, 2, (4,)), RewardModel(3, 2, (4,)), TwinCritic(3, 2, (4,)), 0.9)
    policy = Actor(3, 2, (4,))
    name = "BatchedPolicy.n" if make is BatchedPolicy else "batch"
    for value in NO_COUNTS:
        with pytest.raises(ValueError, match=f"{name}: expected an integer >= 1, got "):
            make(policy, value) if make is BatchedPolicy else make(policy, world, batch=value)


@pytest.mark.parametrize("shape", [3, "3", (2.5,), (-1,), ("2",), (True,), None])
def test_shapes_of_noise(shape):
    dynamics = DeterministicDynamics(3, 2, (4,)).forward

    def step(state, action, noise):
        return dynamics(state, action, noise)

    step.noise_shape = shape
    with pytest.raises(ValueError, match=r"noise_shape .*got ") as caught:
        World(step, RewardModel(3, 2, (4,)), TwinCritic(3, 2, (4,)), 0.9)
    assert repr(shape) in str(caught.value)


def test_numbers_of_a_world_become_pythons_own():
    parts = DeterministicDynamics(3, 2, (4,)), RewardModel(3, 2, (4,)), TwinCritic(3, 2, (4,))
    world = World(*parts, np.float64(0.5), torch.tensor(2.0))
    assert (type(world.discount), type(world.value_scale)) == (float, float)
    assert World(*parts, np.float32(0.5)).discount == 0.5
