"""Controllers in other processes: what arrives acts as what was sent."""

import multiprocessing
import pickle

import pytest
import torch

from jacrec import MPC, Actor, DiffusionDynamics, MPCConfig, RewardModel, TwinCritic, World
from jacrec.experimental import Gated

d, m = 4, 2


def controller(batch=None, update=None, **options):
    torch.manual_seed(0)
    world = World(DiffusionDynamics(d, m, (8,), steps=2), RewardModel(d, m, (8,)), TwinCritic(d, m, (8,)), 0.9)
    config = MPCConfig(horizon=1, particles=4, lr=1e-2, trust_radius=1.0, max_action_change=0.5, **options)
    return MPC(Actor(d, m, (8,)), world, config, batch=batch, update=update)


def act(control, states, answers):
    torch.set_num_threads(1)
    answers.put([control.act(state).tolist() for state in states])


@pytest.mark.parametrize(("batch", "update"), [(None, None), (3, Gated(0.5))])
def test_a_spawned_process_gets_a_controller_that_goes_on(batch, update):
    control = controller(batch, update)
    states = list(torch.randn(5, *([batch] if batch else []), d).unbind(0))
    for state in states[:2]:
        control.act(state)
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    process = spawn.Process(target=act, args=(control, states[2:], answers))
    process.start()
    there = answers.get(timeout=300)
    process.join(60)
    assert process.exitcode == 0
    assert there == [control.act(state).tolist() for state in states[2:]]


@pytest.mark.parametrize("options", [{}, {"deadline_ms": 1e6, "updates": 2}])
def test_a_copy_is_independent(options):
    control = controller(**options)
    control.act(torch.zeros(d))
    copy = pickle.loads(pickle.dumps(control))
    assert copy.config == control.config
    assert torch.equal(copy.act(torch.ones(d)), control.act(torch.ones(d)))
    before = control.state_dict()
    copy.act(torch.zeros(d))
    assert all(torch.equal(value, control.state_dict()[name]) for name, value in before.items())
    # the bound is around ψ₀, of which a copy has one as well
    other = controller(**options)
    with torch.no_grad():
        for parameter in other.pretrained.values():
            parameter.add_(0.3)
    copy.load_state_dict(other.state_dict())
    other.generator.set_state(copy.generator.get_state())
    assert torch.equal(copy.act(torch.ones(d)), other.act(torch.ones(d)))
    assert float(copy.drift()) > 0
    copy.reset()
    assert float(copy.drift()) == 0
