"""Imagined returns of plans: actions a_0 … a_{L-1} open loop, the policy's actions afterwards."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jacrec.engine.dispatch import fused_chain
from jacrec.engine.jacobians import chain
from jacrec.engine.jacobians.dynamics import dynamics_pass
from jacrec.engine.jacobians.generic import checked_value
from jacrec.engine.problem import Problem
from jacrec.models.world import World, apply_policy


@dataclass(frozen=True)
class Imagined:
    """S candidates at N real states, each imagined on the same M noise sequences."""

    returns: Tensor
    """mean over particles of L of (3), (N, S); −inf where not finite"""
    actions: Tensor
    """ã_0 … ã_H, mean over particles where they differ, (N, S, H+1, m)"""


@torch.no_grad()
def imagine(policy: nn.Module, world: World, state: Tensor, plans: Tensor, noise: Tensor) -> Imagined:
    """Imagine S plans from each of N states, open loop for L steps and with the policy afterwards. (2), (3)

    Uses compiled transitions if the CPU kernels can serve. On one core, K = 5, 3×256, these take 0.35 ms for 12 rows (torch:
    0.93), 0.88 for 48 (1.57) and 7.6 for 240 (8.9).

    Args:
        state: (N, d).
        plans: (N, S, L, m) with 0 <= L <= H+1; with L = 0 all are the policy's rollout; with L = H the critic is
            evaluated at the policy's action, with L = H+1 at the plan's last one.
        noise: (N, M, H, *noise_shape), common to all candidates.
    """
    N, S, L, m = plans.shape
    M, H = noise.shape[1:3]
    rows = N * S * M
    s = state[:, None, None].expand(N, S, M, -1).reshape(rows, -1)
    states, actions = [], []
    passes = dynamics_pass(world.dynamics, chain=fused_chain(Problem(policy, world, state, noise, False)) or chain)
    for j in range(H + 1):
        if j < L:
            a = plans[:, :, None, j].expand(N, S, M, m).reshape(rows, m)
        else:
            a = apply_policy(policy, None, s.view(N, S * M, -1)).reshape(rows, -1)
        states.append(s)
        actions.append(a)
        if j < H:
            z = noise[:, None, :, j].expand(N, S, M, *noise.shape[3:]).reshape(rows, *noise.shape[3:])
            s = passes.step(s, a, z)
    returns = world.discount**H * checked_value("critic", world.critic, states[-1], actions[-1])
    if H:
        rewards = checked_value("reward", world.reward, torch.cat(states[:-1]), torch.cat(actions[:-1])).view(H, rows)
        for j in range(H):
            returns = returns + world.discount**j * rewards[j]
    value = returns.view(N, S, M).mean(-1)
    taken = torch.stack([a.view(N, S, M, -1).mean(2) for a in actions], 2)
    return Imagined(torch.where(torch.isfinite(value), value, -torch.inf), taken)
