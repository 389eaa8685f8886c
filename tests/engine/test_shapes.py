"""Wrong inputs: each is one clear error that says what was expected and what came."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from jacrec import (
    Actor,
    Adjoint,
    Autograd,
    BatchedPolicy,
    DiffusionDynamics,
    Forward,
    RewardModel,
    TwinCritic,
    World,
    linearize,
    mpc_update,
    policy_gradient,
)

d, m, K = 4, 2, 3


def detached(state, action, noise):
    return (state + action.sum(-1, keepdim=True)).detach() + noise


def too_wide(state, action, noise):
    return torch.cat([state, action], -1)


detached.noise_shape = too_wide.noise_shape = (d,)


@pytest.fixture
def parts():
    policy = Actor(d, m, (8,))
    world = World(DiffusionDynamics(d, m, (8,), steps=K), RewardModel(d, m, (8,)), TwinCritic(d, m, (8,)), 0.9)
    return policy, world, torch.zeros(3, d), torch.zeros(3, 5, 2, K + 1, d)


@pytest.mark.parametrize("entry", [policy_gradient, linearize, lambda p, w, s, n: mpc_update(p, w, s, noise=n)])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, w, s, n: (p, w, s[:, :3], n), "policy: expects a state of dimension 4, but the state has 3"),
        (lambda p, w, s, n: (Actor(d, 3, (8,)), w, s, n), "policy: expects 3 actions, but the dynamics have 2"),
        (lambda p, w, s, n: (p, replace(w, critic=TwinCritic(5, m, (8,))), s, n), "critic: expects a state of dimension 5"),
        (lambda p, w, s, n: (p, replace(w, reward=RewardModel(d, m, (8,)).double()), s, n), "float64 on cpu like the reward's"),
        (lambda p, w, s, n: (p.half(), w, s.half(), n.half()), "expected float32 or float64, got torch.float16"),
        (lambda p, w, s, n: (nn.Flatten(0), w, s, n), "policy: expected a module with parameters"),
        (lambda p, w, s, n: (nn.Sequential(nn.Linear(d, 1), nn.Flatten(0)), w, s, n), r"policy: expected actions of shape"),
        (lambda p, w, s, n: (p, replace(w, reward=lambda s, a: s), s, n), r"reward: expected shape \(9,\), got \(9, 4\)"),
        (lambda p, w, s, n: (p, replace(w, reward=lambda s, a: 1.0), s, n), "reward: expected a torch.Tensor"),
        (lambda p, w, s, n: (p, replace(w, critic=lambda s, a: a.detach().sum(-1)), s, n), "got one cut off from both"),
        (lambda p, w, s, n: (p, replace(w, dynamics=detached), s, n[..., 0, :]), "dynamics: .* got one cut off from both"),
        (
            lambda p, w, s, n: (p, replace(w, dynamics=too_wide), s, n[..., 0, :]),
            r"dynamics: expected shape \(9, 4\), got \(9, 6\)",
        ),
        (lambda p, w, s, n: (p, w, s[None], n), r"state: expected shape \(d,\) or \(N, d\), got \(1, 3, 4\)"),
        (lambda p, w, s, n: (p, w, s.tolist(), n), "state: expected a torch.Tensor, got list"),
        (lambda p, w, s, n: (p, w, s.long(), n), "state: expected a floating-point tensor, got torch.int64"),
        (lambda p, w, s, n: (p, w, s.double(), n), "state: expected torch.float32 on cpu like the policy's parameters"),
        (lambda p, w, s, n: (p, w, s.to("meta"), n), "state: expected torch.float32 on cpu .* on meta"),
        (lambda p, w, s, n: (p, w, s, n.double()), "noise: expected torch.float32 on cpu like the state"),
        (lambda p, w, s, n: (p, w, s, n[0]), r"noise: expected shape \(3, M, H, 4, 4\) .* got \(5, 2, 4, 4\)"),
        (lambda p, w, s, n: (p, w, s, n[:2]), r"noise: expected shape \(3, M, H, 4, 4\)"),
        (lambda p, w, s, n: (p, w, s, n[:, :0]), "with M >= 1 particles"),
        (lambda p, w, s, n: (p, w, s, n[..., :2, :]), r"one transition's noise is \(4, 4\)"),
        (lambda p, w, s, n: (p, w, s[0], n), r"noise: expected shape \(M, H, 4, 4\)"),
        (lambda p, w, s, n: (p, w, s.index_fill(0, torch.tensor([1]), torch.nan), n), r"state: .* in rows \[1\] of 3"),
        (lambda p, w, s, n: (p, w, s, n.index_fill(0, torch.tensor([2]), torch.inf)), r"noise: .* in rows \[2\] of 3"),
        (lambda p, w, s, n: (lambda x: x, w, s, n), "policy: expected a torch.nn.Module"),
        (lambda p, w, s, n: (nn.Tanh(), w, s, n), "policy: expected a module with parameters"),
        (lambda p, w, s, n: (nn.Sequential(p, nn.Dropout(0.1)), w, s, n), r"policy: .* Dropout at '1' in training mode"),
        (lambda p, w, s, n: (p, (1, 2), s, n), "world: expected a jacrec.World"),
        (lambda p, w, s, n: (BatchedPolicy(p, 2), w, s, n), "state: expected 2 rows, one for each policy .* got 3"),
    ],
)
def test_wrong_inputs(parts, entry, change, message):
    with pytest.raises(ValueError, match=message):
        entry(*change(*parts))


def test_functions_that_ignore_an_input_or_both_are_fine(parts):
    """A drifting world, a constant reward, a critic of the state alone: nothing of that is cut off."""
    policy, _, state, noise = parts

    def drift(state, action, noise):
        return 0.9 * state + noise

    drift.noise_shape = (d,)
    lazy = World(drift, lambda s, a: torch.ones(len(s)), lambda s, a: s.square().sum(-1), 0.9)
    for method in (Forward(), Adjoint(), Autograd()):
        g = policy_gradient(policy, lazy, state, noise[..., 0, :], method=method)
        assert not any(v.any() for v in g.gradient.values())


def test_world_says_what_it_needs():
    f = DiffusionDynamics(d, m, (8,), steps=K)
    r, q = RewardModel(d, m, (8,)), TwinCritic(d, m, (8,))
    with pytest.raises(ValueError, match=r"World\.reward: expected a callable, got float"):
        World(f, 1.0, q, 0.9)
    with pytest.raises(ValueError, match="noise_shape"):
        World(lambda s, a, e: s, r, q, 0.9)
    with pytest.raises(ValueError, match=r"0 <= γ <= 1, got 1\.5"):
        World(f, r, q, 1.5)
    with pytest.raises(ValueError, match=r"World.critic: .* BatchNorm1d at '0' in training mode"):
        World(f, r, nn.Sequential(nn.BatchNorm1d(3)), 0.9)


def test_batched_policies_say_what_they_need():
    with pytest.raises(ValueError, match=r"BatchedPolicy\.n: expected an integer >= 1, got 0"):
        BatchedPolicy(Actor(d, m, (8,)), 0)
    with pytest.raises(ValueError, match="expected a single policy"):
        BatchedPolicy(BatchedPolicy(Actor(d, m, (8,)), 2), 2)
    with pytest.raises(ValueError, match="expected 2 rows, one for each policy, got shape"):
        BatchedPolicy(nn.Linear(d, m), 2)(torch.zeros(3, d))


def test_batched_policy_keeps_names_and_maps_slices():
    policy = nn.Sequential(nn.Linear(d, 5), nn.Tanh(), nn.Linear(5, m))
    many = BatchedPolicy(policy, 3)
    assert [name for name, _ in many.named_parameters()] == [name for name, _ in policy.named_parameters()]
    with torch.no_grad():
        for p in many.parameters():
            p[1] += 1.0
    s = torch.randn(3, 2, d)
    torch.testing.assert_close(many(s)[0], policy(s[0]))
    torch.testing.assert_close(many(s)[2], policy(s[2]))
    assert not torch.allclose(many(s)[1], policy(s[1]))
    moved = nn.Sequential(nn.Linear(d, 5), nn.Tanh(), nn.Linear(5, m))
    moved.load_state_dict({k: p[1] for k, p in many.named_parameters()})
    torch.testing.assert_close(many(s)[1], moved(s[1]))
