"""The engine's results, and the protocol of an update. Leading axes (N, M): real states, particles."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PolicyGradient:
    """Ĵ and ∇_ψ Ĵ (section 4.2)."""

    value: Tensor
    """Ĵ, the mean over the M particles: () for one state, (N,) for N"""
    gradient: dict[str, Tensor]
    """by `policy.named_parameters()` names. Shared ψ: of the mean of Ĵ over the N states. `BatchedPolicy`: (N, ...), row n
    of Ĵ_n"""


@dataclass(frozen=True)
class DynamicsJacobians:
    """∂f_θ/∂s and ∂f_θ/∂a at fixed noise. (12), (32)"""

    F_s: Tensor  # (..., d, d) = B_0
    F_a: Tensor  # (..., d, m) = A_0


class RolloutJacobians(NamedTuple):
    """Every Jacobian along the N·M rollouts, not discounted."""

    states: Tensor  # (N, M, H+1, d)
    actions: Tensor  # (N, M, H+1, m)
    returns: Tensor  # (N, M)
    F_s: Tensor  # (N, M, H, d, d)
    F_a: Tensor  # (N, M, H, d, m)
    Pi_s: Tensor  # (N, M, H+1, m, d)
    values_s: Tensor  # r_s, at the last step Q_s: (N, M, H+1, d)
    values_a: Tensor  # r_a, at the last step Q_a: (N, M, H+1, m)
    w: Tensor  # ∂L/∂ã_j, (N, M, H+1, m)


@dataclass(frozen=True)
class Sensitivities:
    """G_j and D_j in factored form: G_j = Σ_{i<j} C_{j,i} Π_ψ(i), D_j = Σ_{i≤j} E_{j,i} Π_ψ(i)."""

    C: Tensor  # (N, M, j, m, d): C_{j,i} transposed, its m columns as rows
    E: Tensor  # (N, M, j+1, m, m): E_{j,i} transposed, likewise

    def dense(self, Pi_psi: Tensor) -> tuple[Tensor, Tensor]:
        """G_j (N, M, d, P) and D_j (N, M, m, P) from Π_ψ(0…j), (N, M, j+1, m, P)."""
        G = torch.einsum("nmiad,nmiap->nmdp", self.C, Pi_psi[:, :, :-1])
        D = torch.einsum("nmiab,nmiap->nmbp", self.E, Pi_psi)
        return G, D


class GateRecord(NamedTuple):
    """What a signal gate did (`jacrec.experimental.gate`), () or (N,) per update."""

    snr: Tensor
    """signal-to-noise ratio of the gradient"""
    particles: Tensor
    """particles drawn"""
    gated: Tensor
    """whether the step was finite but held back for lack of signal"""


class UpdateResult(NamedTuple):
    """Outcome of an applied update; norm and acceptance are () for a single ψ, (N,) for a `BatchedPolicy`."""

    objective: Tensor
    """Ĵ before the update, () or (N,)"""
    gradient_norm: Tensor
    accepted: Tensor
    gate: GateRecord | None = None


class Update(Protocol):
    """A step of ψ that has been computed and not yet applied."""

    @property
    def value(self) -> Tensor:
        """Ĵ at the present ψ, () or (N,)."""
        ...

    def apply(self) -> UpdateResult:
        """Take the step, once; rows whose value, gradient or step is not finite are left unchanged and not accepted."""
        ...

    def action(self, policy: nn.Module, state: Tensor) -> Tensor:
        """A policy's action at states (N, d) -> (N, m), evaluated as the update was."""
        ...
