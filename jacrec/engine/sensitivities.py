"""The sensitivities G_j = ∂s̃_j/∂ψ and D_j = ∂ã_j/∂ψ: as printed, (P columns), and factored (j·m columns).

Factored, every column of G_j and D_j is a combination of rows of Π_ψ(0) … Π_ψ(j), so only the coefficients are propagated:

    E_{j,i} = Π_s(j) C_{j,i} (i < j),   E_{j,j} = I,   C_{j+1,i} = F_s(j) C_{j,i} + F_a(j) E_{j,i}

Coefficients are stored as rows: C (N, M, j·m, d), E (N, M, (j+1)·m, m).
"""

import torch
from torch import Tensor

from jacrec.engine.jacobians.dynamics import DynamicsPass, jacobians
from jacrec.engine.types import DynamicsJacobians


def action_step(C: Tensor, Pi_s: Tensor | None, m: int) -> Tensor:
    """(10) factored: C (N, R, T, d), Π_s (N, R, m, d) (unused, so None, where T = 0) -> E (N, R, T+m, m)."""
    unit = torch.eye(m, dtype=C.dtype, device=C.device).expand(*C.shape[:2], m, m)
    return unit if Pi_s is None else torch.cat([C @ Pi_s.mT, unit], -2)


def state_step(
    passes: DynamicsPass, state: Tensor, action: Tensor, noise: Tensor, C: Tensor, E: Tensor
) -> tuple[Tensor, Tensor]:
    """(13) factored, together with the step of the rollout: s̃_{j+1} (N, M, d) and C_{j+1} (N, M, T+m, d).

    state (N, M, d), action (N, M, m), noise (N, M, *noise_shape), C (N, M, T, d), E (N, M, T+m, m). Whichever is fewer
    goes through the dynamics: the T+m columns themselves, or the d+m unit directions.
    """
    N, M, d = state.shape
    m = action.shape[-1]
    columns = E.shape[-2]
    C = torch.cat([C, C.new_zeros(*C.shape[:2], m, d)], -2)  # C_{j,j} = 0
    flat = [x.reshape(N * M, *x.shape[2:]) for x in (state, action, noise, C, E)]
    if columns < d + m:
        next_state, C = passes.push(*flat)
    else:
        next_state, J = jacobians(passes, *flat[:3])
        C = flat[3] @ J.F_s.mT + flat[4] @ J.F_a.mT
    return next_state.reshape(N, M, d), C.reshape(N, M, columns, d)


def dense_action_step(G: Tensor, Pi_s: Tensor, Pi_psi: Tensor) -> Tensor:
    """D_j = Π_s(j) G_j + Π_ψ(j). (10) G (..., d, P), Π_s (..., m, d), Π_ψ (..., m, P) -> (..., m, P)."""
    return Pi_s @ G + Pi_psi


def dense_state_step(G: Tensor, D: Tensor, J: DynamicsJacobians) -> Tensor:
    """G_{j+1} = F_s(j) G_j + F_a(j) D_j. (13) G (..., d, P), D (..., m, P) -> (..., d, P)."""
    return J.F_s @ G + J.F_a @ D
