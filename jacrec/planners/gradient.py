"""∂J/∂a_0 … ∂J/∂a_{H-1} of an open-loop plan, by hand: the adjoint of (2), with the policy only in the last action."""

import torch
from torch import Tensor, nn

from jacrec.engine.dispatch import fused_chain
from jacrec.engine.jacobians import chain
from jacrec.engine.jacobians.dynamics import dynamics_pass
from jacrec.engine.jacobians.policy import policy_pass
from jacrec.engine.jacobians.values import value_and_gradient
from jacrec.engine.problem import Problem
from jacrec.models.world import World


@torch.no_grad()
def action_gradient(
    policy: nn.Module, world: World, state: Tensor, plan: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """J = mean over M particles of Σ_j γ^j r(s̃_j, a_j) + γ^H Q(s̃_H, π(s̃_H)), with its gradient with respect to the actions.

    λ_H = γ^H (Q_s + Π_sᵀ Q_a);  ∂J/∂a_j = γ^j r_a + F_aᵀ λ_{j+1},  λ_j = γ^j r_s + F_sᵀ λ_{j+1}.
    Uses the compiled chain if it can serve.

    Args:
        state: (N, d).
        plan: (N, H, m), H >= 1.
        noise: (N, M, H, *noise_shape).

    Returns:
        J (N,), ∂J/∂a (N, H, m), and π(s̃_H) averaged over particles (N, m).
    """
    (N, H, m), M = plan.shape, noise.shape[1]
    compiled = fused_chain(Problem(policy, world, state, noise, False))
    passes = dynamics_pass(world.dynamics, chain=compiled or chain)
    s = state.repeat_interleave(M, 0)
    actions = plan.repeat_interleave(M, 0).unbind(1)
    states, pulls = [], []
    for j, a in enumerate(actions):
        states.append(s)
        s, pull = passes.record(s, a, noise[:, :, j].flatten(0, 1))
        pulls.append(pull)
    # all steps at once: γ^j r, γ^j r_s and γ^j r_a, (H, N·M, ...)
    r, r_s, r_a = (
        x.unflatten(0, (H, N * M)) for x in value_and_gradient("reward", world.reward, torch.cat(states), torch.cat(actions))
    )
    discounts = (world.discount ** torch.arange(H, dtype=r.dtype, device=r.device)).view(H, 1, 1)
    value = (discounts.squeeze(-1) * r).sum(0)
    r_s, r_a = discounts * r_s, discounts * r_a
    pi = policy_pass(policy, s.view(N, M, -1), parameters=False)
    last = pi.action.flatten(0, 1)
    Q, Q_s, Q_a = value_and_gradient("critic", world.critic, s, last)
    value = value + world.discount**H * Q
    lam = world.discount**H * (Q_s + pi.pull_state(Q_a.view(N, M, m)).flatten(0, 1))
    gradient = torch.empty_like(plan)
    for j in range(H - 1, -1, -1):
        v_s, v_a = pulls[j](lam)
        gradient[:, j] = (r_a[j] + v_a).view(N, M, m).mean(1)
        lam = r_s[j] + v_s
    return value.view(N, M).mean(1), gradient, pi.action.mean(1)
