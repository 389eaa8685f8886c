"""What parts may answer: rows on their own, of a floating-point type, with derivatives."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from jacrec import (
    MPC,
    Adjoint,
    Autograd,
    MPCConfig,
    TwinCritic,
    mpc_update,
    policy_gradient,
)
from tests.engine.test_admission import Policy, d, m, with_noise
from tests.strategies import foreign_critic

torch.manual_seed(0)  # of the weights of the policies below


def beside(x):
    """x minus the mean of all rows."""
    return x - x.mean(0)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("policy", Policy(lambda a: nn.functional.batch_norm(a, None, None, training=True).tanh())),
        ("policy", Policy(lambda a: a / (1e-3 + a.abs().max()))),
        ("policy", Policy(lambda a: torch.cat([a[:1], beside(a)[1:-1], a[-1:]]))),
        ("dynamics", with_noise(lambda s, a, e: beside(s))),
        ("dynamics", with_noise(lambda s, a, e: s + e.mean() + a.sum(-1, keepdim=True))),
        ("reward", lambda s, a: -beside(s).square().sum(-1)),
        ("reward", lambda s, a: -(s / (1e-3 + s.abs().max())).square().sum(-1)),
        ("critic", lambda s, a: foreign_critic(s, a) - foreign_critic(s, a).mean()),
        # by their number alone
        ("policy", Policy(lambda a: a * 3 / len(a))),
        ("dynamics", with_noise(lambda s, a, e: s + a.sum(-1, keepdim=True) / len(s))),
        ("reward", lambda s, a: -s.square().sum(-1) / len(s)),
        ("critic", lambda s, a: foreign_critic(s, a) / len(s) ** 0.5),
    ],
)
@pytest.mark.parametrize("method", [Adjoint(), Autograd()])
def test_parts_whose_rows_depend_on_one_another_are_refused(world, part, value, method):
    policy = value if part == "policy" else Policy()
    world = world if part == "policy" else replace(world, **{part: value})
    with pytest.raises(ValueError, match=rf"^{part}: expected a row's answer to depend on that row alone"):
        policy_gradient(policy, world, torch.zeros(d), torch.randn(3, 2, 2), method=method)


@pytest.mark.parametrize("part", ["reward", "critic"])
@pytest.mark.parametrize("kind", [torch.int64, torch.bool])
def test_values_of_an_integer_type_are_one_sentence(world, part, kind):
    world = replace(world, **{part: lambda s, a: (s[..., 0] > 0).to(kind)})
    with pytest.raises(ValueError, match=rf"^{part}: expected a floating-point answer, got {kind}; convert it"):
        mpc_update(Policy(), world, torch.zeros(d))


@pytest.mark.parametrize(
    ("critic", "advice"),
    [
        (nn.Linear(d + m, 1), "net(torch.cat([s, a], -1))"),
        (lambda s, a: torch.stack([foreign_critic(s, a)] * 3), ".amin(axis)"),
        (lambda s, a: foreign_critic(s, a).mean(), "dim=-1"),
    ],
)
def test_what_to_do_with_a_critic_of_another_form_is_said(world, critic, advice):
    with pytest.raises(ValueError, match=rf"^critic: expected .*; .*{re.escape(advice)}"):
        mpc_update(Policy(), replace(world, critic=critic), torch.zeros(d))


def test_a_controller_made_in_inference_mode_decides_as_another(world):
    policy, state = Policy(), torch.ones(d)
    with torch.inference_mode():
        inside = MPC(policy, world, MPCConfig(2, particles=3)).act(state)
        batched = MPC(policy, world, MPCConfig(2, particles=3), batch=1).act(state[None])
    outside = MPC(policy, world, MPCConfig(2, particles=3)).act(state)
    assert torch.equal(inside, outside)
    assert torch.allclose(batched[0], outside)


@pytest.mark.parametrize("part", ["policy", "critic"])
def test_parts_made_in_inference_mode_are_refused(world, part):
    with torch.inference_mode():
        made = Policy() if part == "policy" else TwinCritic(d, m, (8,))
    policy = made if part == "policy" else Policy()
    world = replace(world, critic=made) if part == "critic" else world
    with pytest.raises(ValueError, match=rf"^{part}: expected parameters that have derivatives, got .*inference_mode"):
        policy_gradient(policy, world, torch.zeros(d), torch.randn(3, 2, 2))


class Shared(nn.Module):
    """A reward or critic on the first layers of a policy."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(8 + m, 1)

    def forward(self, state, action):
        return self.head(torch.cat([self.encoder(state), action], -1)).squeeze(-1)


@pytest.mark.parametrize("part", ["reward", "critic", "dynamics"])
@pytest.mark.parametrize("function", [False, True])
def test_an_update_in_place_changes_no_part_of_the_world(world, part, function):
    """The gradient takes what they share for a constant, a controller updates a copy of the policy, and no update moves what is frozen."""
    policy, noise, state = Policy(), torch.randn(3, 2, 2), torch.randn(d)
    shared = Shared(policy.net[:2])
    apart = copy.deepcopy(shared)

    def given(network):
        if part == "dynamics":
            return with_noise(lambda s, a, e: s + 0.1 * network(s, a)[:, None])
        return (lambda s, a: network(s, a)) if function else network

    joined, separate = (replace(world, **{part: given(network)}) for network in (shared, apart))
    gradients = [policy_gradient(policy, w, state, noise).gradient for w in (joined, separate)]
    assert all(torch.equal(gradients[0][name], g) for name, g in gradients[1].items())
    settings = MPCConfig(2, particles=3, lr=0.1, updates=3)
    controllers = [MPC(policy, w, settings) for w in (joined, separate)]
    for _ in range(2):
        assert torch.equal(*(mpc.act(state) for mpc in controllers))
    before = copy.deepcopy(policy.state_dict())
    for settings in ({"noise": noise}, {"horizon": 2}):
        with pytest.raises(ValueError, match=rf"^{part}: expected parameters of its own, got some of the policy's.*deepcopy"):
            mpc_update(policy, joined, state, **settings)
    assert all(torch.equal(x, before[name]) for name, x in policy.state_dict().items())
    policy.net[:2].requires_grad_(False)
    actions = [mpc_update(copy.deepcopy(policy), separate, state, noise=noise, lr=0.1).action]
    actions.append(mpc_update(policy, joined, state, noise=noise, lr=0.1).action)
    assert torch.equal(*actions)
    assert all(torch.equal(x, apart.state_dict()[name]) for name, x in shared.state_dict().items())
