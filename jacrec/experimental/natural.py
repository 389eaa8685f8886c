"""Natural-gradient ascent: steps measured by the change of the actions, solved in the space of the visited rows.

With π_ψ as the mean of a Gaussian policy N(π_ψ(s), σ² I), the Fisher information of its actions at n visited states is
G / σ² with

    G = (1/n) Σ_v Π_ψ(v)ᵀ Π_ψ(v) ,        δᵀ G δ = (1/n) Σ_v ‖Π_ψ(v) δ‖²,

the mean squared change of the actions to first order, and the Gauss–Newton matrix of that change. The damped step is

    δ = argmax_δ  ∇Ĵ δ − ½ (δᵀ G δ + λ ‖δ‖²) = (G + λ I)⁻¹ ∇Ĵ

It is not Newton's step on the return: the return is not a sum of squares, and the curvature that a Gauss–Newton matrix of it
would keep, such as r_aa and r_ss, is zero almost everywhere in a ReLU reward model. The metric is that of the actions.

G is P × P and never formed. With J (nm × P) the rows of all Π_ψ(v), ∇Ĵ = Jᵀ u has u_v = the weight of the action at v, and

    (Jᵀ J/n + λ I)⁻¹ Jᵀ u = Jᵀ c,    (K/n + λ I) c = u,    K = J Jᵀ     (push-through, or Woodbury's, identity)

so one system of nm unknowns gives new weights c for the same vector–Jacobian product that ends every gradient. K comes from the
factored Jacobians layer by layer (`jacrec.engine.jacobians.factored`). The M particles share s̃_0: it enters once, with weight M.

Kakade (2002), A natural policy gradient; Schulman et al. (2015), Trust region policy optimization, section 6.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from jacrec.engine.diagnostics import Visits
from jacrec.engine.jacobians.factored import factored_rows
from jacrec.engine.jacobians.policy import policy_pass
from jacrec.engine.problem import Problem


@dataclass(frozen=True)
class NaturalStep:
    """δ = (G + λ I)⁻¹ ∇Ĵ; rows as of the gradient."""

    step: dict[str, Tensor]
    """δ by parameter name"""
    length: Tensor
    """√(δᵀ (G + λ I) δ), () or (N,): an upper bound on the root mean squared change of the visited actions, to first order"""


@torch.no_grad()
def natural_step(p: Problem, visits: Visits, damping: float, counted: Collection[str]) -> NaturalStep:
    """Solve for δ, row by row for a `BatchedPolicy`, over all real states at once for a single ψ.

    Args:
        damping: λ as a share of tr(G)/m, the mean squared sensitivity of an action's component to the parameters.
        counted: the parameters that may move; the others are treated as constants.

    Returns:
        A `NaturalStep`, NaN where a visit is not finite.
    """
    first, later = visits.states[:, :1, 0], visits.states[:, :, 1:].flatten(1, 2)
    states = torch.cat([first, later], 1)  # (N, R, d), R = 1 + M·H
    N, M, _, m = visits.w.shape
    u = torch.cat([visits.w[:, :, 0].sum(1, keepdim=True), visits.w[:, :, 1:].flatten(1, 2)], 1) / M  # (N, R, m)
    heavy = torch.ones_like(states[..., 0])
    heavy[:, 0] = M
    if not p.batched:
        states, u, heavy = (x.flatten(0, 1).unsqueeze(0) for x in (states, u / N, heavy))
    n = heavy.sum(1, keepdim=True)  # visited states, coinciding ones counted separately
    root = (heavy / n).sqrt().repeat_interleave(m, -1)  # (·, R·m)
    pi = policy_pass(p.policy, states)
    unit = torch.eye(m, dtype=u.dtype, device=u.device).expand(*u.shape[:-1], m, m)
    K = factored_rows(pi, unit, counted).gram() * root.unsqueeze(-1) * root.unsqueeze(-2)
    scale = K.diagonal(dim1=-2, dim2=-1).sum(-1) / m
    shifted = K + (damping * scale)[:, None, None] * torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)
    right = (u.flatten(1) / root).unsqueeze(-1)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    z = torch.cholesky_solve(right, factor).squeeze(-1)
    z = torch.where((failed == 0).unsqueeze(-1), z, torch.full_like(z, torch.nan))
    c = (z * root).unflatten(-1, (-1, m))
    # δᵀ (G + λ I) δ = δᵀ ∇Ĵ
    length = (z * (K @ right).squeeze(-1)).sum(-1).clamp(min=0).sqrt()
    step = pi.pull_parameters(c)
    return NaturalStep({k: step[k] for k, _ in p.policy.named_parameters()}, length if p.batched else length.squeeze(0))
