"""A problem that the CPU kernels serve, in any size, and decisions beside each other."""

import copy
from dataclasses import replace

import torch

from jacrec import Actor, Adjoint, Anchor, BatchedPolicy, DiffusionDynamics, Forward, RewardModel, TwinCritic, World, mpc_update
from jacrec.kernels.cpu.gradient import job
from tests.strategies import shake

FUSED = Adjoint(kernel="fused")
FORWARD = Forward(kernel="fused")


def team_of(row):
    """The size of the thread team that a job's row asks for."""
    return row[job.AT.sizes + job.Sizes._fields.index("team")]


def problem_of(d=11, m=3, N=1, M=5, H=2, K=3, hidden=(33, 33), batched=False, dtype=torch.float64, seed=0, **networks):
    """policy, world, state (N, d), noise."""
    torch.manual_seed(seed)
    actor = Actor(d, m, hidden, **networks)
    actor.mlp.initialise()
    world = World(
        DiffusionDynamics(d, m, hidden, steps=K, **networks),
        RewardModel(d, m, hidden, **networks),
        TwinCritic(d, m, hidden, **{"layer_norm": True, **networks}),
        0.97,
    ).to(dtype)
    policy = BatchedPolicy(actor.to(dtype), N) if batched else actor.to(dtype)
    return policy, world, torch.randn(N, d, dtype=dtype), torch.randn(N, M, H, K + 1, d, dtype=dtype)


def anchored(problem, weight=0.5, terminal=False):
    """The problem with an anchor of other parameters."""
    policy, world, *inputs = problem
    base = copy.deepcopy(policy.template if isinstance(policy, BatchedPolicy) else policy)
    shake(base)
    return policy, replace(world, anchor=Anchor(base, weight, terminal)), *inputs


def decide(problem, method, policy=None, **options):
    """The decision of a copy of the policy (or of `policy` itself), and that copy."""
    own = copy.deepcopy(problem[0]) if policy is None else policy
    return mpc_update(own, problem[1], problem[2], noise=problem[3], method=method, **options), own


def same_decision(got, expected, got_policy, expected_policy, tolerance=1e-11):
    for name in ("action", "objective", "gradient_norm", "accepted"):
        a, b = getattr(got, name), getattr(expected, name)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
    for (name, a), b in zip(got_policy.named_parameters(), expected_policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=name)
