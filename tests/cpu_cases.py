"""A problem that the CPU kernels serve, in any size."""

import torch

from jacrec import Actor, Adjoint, BatchedPolicy, DiffusionDynamics, RewardModel, TwinCritic, World

FUSED = Adjoint(kernel="fused")


def problem_of(d=11, m=3, N=1, M=5, H=2, K=3, hidden=(33, 33), batched=False, dtype=torch.float64, seed=0, **networks):
    """policy, world, state (N, d), noise."""
    torch.manual_seed(seed)
    actor = Actor(d, m, hidden, **networks)
    actor.mlp.initialise()
    world = World(
        DiffusionDynamics(d, m, hidden, steps=K, **networks), RewardModel(d, m, hidden, **networks),
        TwinCritic(d, m, hidden, **{"layer_norm": True, **networks}), 0.97,
    ).to(dtype)  # fmt: skip
    policy = BatchedPolicy(actor.to(dtype), N) if batched else actor.to(dtype)
    return policy, world, torch.randn(N, d, dtype=dtype), torch.randn(N, M, H, K + 1, d, dtype=dtype)
