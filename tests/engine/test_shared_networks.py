"""Networks that are used twice: within a policy, by policy and anchor, by a critic that calls the kernels itself."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from jacrec import Actor, Anchor, Auto, Autograd, BatchedPolicy, explain, mpc_update, policy_gradient
from jacrec.engine.shapes import problem
from jacrec.kernels.cpu.base.threads import forget_workspace, workspace
from jacrec.kernels.cpu.gradient.gradient import _SLOT, compute_update
from tests.engine.test_own_networks import d, inputs, is_right, m, world_of
from tests.models.test_layers import stack
from tests.strategies import foreign_critic


def test_the_memory_of_the_compiled_calls_is_the_threads_own_after_a_critic_has_replaced_it():
    """A critic may use the kernels itself, at other sizes: the memory that was reserved before it ran is freed then."""
    kept = []

    def critic(state, action):
        kept.append(workspace(1, torch.float64))  # alive, so that no other memory gets its address
        forget_workspace()
        return foreign_critic(state, action)

    policy, world = stack(), world_of(critic=critic)
    state, noise = inputs(world)
    update = compute_update(problem(policy, world, state, noise))
    assert kept
    own, used = workspace(1, torch.float64), int(update.job.row[_SLOT["memory"]])
    assert own.data_ptr() <= used < own.data_ptr() + own.numel() * own.element_size()
    expected = policy_gradient(policy, world, state, noise, method=Autograd())
    torch.testing.assert_close(update.value, expected.value, rtol=1e-11, atol=1e-11)


def test_a_module_in_two_places_keeps_its_parameters():
    torch.manual_seed(0)
    twice = nn.Linear(5, 5).double()
    policy = nn.Sequential(
        nn.Linear(d, 5).double(), nn.ReLU(), twice, nn.ReLU(), twice, nn.ReLU(), nn.Linear(5, m).double(), nn.Tanh()
    )
    weight, world = twice.weight, world_of()
    weight.requires_grad_(False)
    before = weight.clone()
    state, noise = inputs(world)
    mpc_update(policy, world, state, noise=noise, lr=0.1)
    explain(policy, world)
    assert twice.weight is weight
    assert not weight.requires_grad
    assert torch.equal(weight, before)
    is_right(BatchedPolicy(policy, 2), world, (Auto(),))  # asserts that the gradients agree
    is_right(policy, world, (Auto(),))


def test_an_anchor_that_shares_the_policys_parameters_is_refused():
    module = stack()
    world = world_of()
    with pytest.raises(ValueError, match=r"^anchor: expected a policy of its own"):
        mpc_update(module, replace(world, anchor=Anchor(Actor.from_module(module), 1.0)), torch.zeros(d, dtype=torch.float64))


def test_what_cannot_be_explained_is_refused():
    for policy, world in ((nn.Tanh(), world_of()), (torch.tanh, world_of()), (stack(), None)):
        with pytest.raises(ValueError, match=r"^(policy|world): expected"):
            explain(policy, world)
