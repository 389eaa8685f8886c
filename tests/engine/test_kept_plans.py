"""The kernels' kept plan: found again by everything that makes a problem, and not where something has changed."""

import pytest
import torch

from jacrec import (
    MPC,
    Actor,
    BatchedPolicy,
    DiffusionDynamics,
    MPCConfig,
    RewardModel,
    TwinCritic,
    World,
    mpc_update,
    policy_gradient,
)
from jacrec.engine import shapes
from jacrec.engine.dispatch import kept_plan
from jacrec.engine.shapes import problem
from jacrec.kernels.cpu.gradient import plans

d, m = 4, 2


@pytest.fixture
def parts():
    plans.forget()
    torch.manual_seed(0)
    return Actor(d, m, (8,)), World(
        DiffusionDynamics(d, m, (8,), steps=2), RewardModel(d, m, (8,)), TwinCritic(d, m, (8,)), 0.9
    )


@pytest.fixture
def checks(monkeypatch):
    """The calls that are only made where no plan has been found."""
    calls = []
    real = shapes.check_parts
    monkeypatch.setattr(shapes, "check_parts", lambda *parts: calls.append(parts) or real(*parts))
    return calls


def gradient(parts):
    noise = torch.zeros(2, 1, *parts[1].dynamics.noise_shape)
    return lambda: policy_gradient(*parts, torch.zeros(d), noise)


def update(parts):
    return lambda: mpc_update(*parts, torch.zeros(d), horizon=1, particles=2)


def update_of_many(parts):
    policies = BatchedPolicy(parts[0], 3)
    return lambda: mpc_update(policies, parts[1], torch.zeros(3, d), horizon=1, particles=2, updates=2)


def controller(batch):
    def make(parts):
        control = MPC(*parts, MPCConfig(horizon=1, particles=2), batch=batch)
        return lambda: control.act(torch.zeros(*([batch] if batch else []), d))

    return make


@pytest.mark.parametrize("make", [gradient, update, update_of_many, controller(None), controller(3)])
def test_the_second_call_on_unchanged_parts_finds_it(parts, checks, make):
    call = make(parts)
    checks.clear()  # a controller has looked at its parts
    call()
    assert len(checks) == 1, "the first call makes the plan"
    for _ in range(3):
        call()
    assert len(checks) == 1, "later calls find it"


def test_a_problem_has_the_plan(parts):
    state, noise = torch.zeros(d), torch.zeros(2, 1, *parts[1].dynamics.noise_shape)
    gradient(parts)()
    plan = kept_plan(*parts, state)
    assert plan is not None
    assert problem(*parts, state, noise).plan is plan
    parts[0].mlp.layers[0].weight = torch.nn.Parameter(torch.zeros(8, d))
    assert problem(*parts, state, noise).plan is None


@pytest.mark.parametrize("state", [None, torch.tensor(1.0), "state"])
def test_what_is_no_problem_has_none(parts, state):
    gradient(parts)()
    assert kept_plan(*parts, state) is None
    assert kept_plan(parts[0], None, torch.zeros(d)) is None
