"""The chain of a `ChainDynamics` with its derivatives: A_k, B_k of (29) and (31), or any tangents; and transposed.

h_u, h_s and h_a are never formed. The denoiser's first layer splits by input: W_u u changes with k, W_sa (s, a) and its
tangents do not, and the step embedding is a table of K rows.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from jacrec.engine.jacobians.mlp import MLPTape, join, mlp_pull, mlp_push, mlp_record, split
from jacrec.models.dynamics import ChainDynamics
from jacrec.models.dynamics.chain import Time
from jacrec.models.networks import step_embedding


def level_table(dynamics: ChainDynamics) -> Tensor:
    """W_t emb(k) + b for the K levels of the chain: (K, hidden[0]), row k−1 for h_k."""
    W_t, b, features = level_parts(dynamics)
    return torch.addmm(b, features, W_t)


def level_parts(dynamics: ChainDynamics) -> tuple[Tensor, Tensor, Tensor]:
    """What `level_table` is made of: W_tᵀ (e, hidden[0]) and b (hidden[0],) where they lie, and the steps' features (K, e)."""
    _, _, W_t, b = (part.detach() for part in dynamics.denoiser.split())
    return W_t.mT, b, _embedded(dynamics.times, dynamics.denoiser.embedding_dim, W_t.dtype, W_t.device)


@cache
def _embedded(times: tuple[Time, ...], dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The features of the steps, (K, times · dim); kept, so made in nobody's mode."""
    with torch.inference_mode(False), torch.no_grad():
        return step_embedding(torch.tensor(times, dtype=torch.float64, device=device), dim).flatten(1).to(dtype)


def chain_forward(
    dynamics: ChainDynamics,
    state: Tensor,
    action: Tensor,
    noise: Tensor,
    ds: Tensor,
    da: Tensor,
    table: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """f_θ(s, a, ε) and its derivative along T directions, in one pass that stores nothing.

    Args:
        state (B, d), action (B, m), noise (B, *noise_shape); ds (B, T, d) and da (B, T, m): the directions. Unit directions
        give [A_0 | B_0] of (32). table: `level_table(dynamics)`, for callers that have it.

    Returns:
        next state (B, d) and its tangents F_s ds + F_a da, (B, T, d).
    """
    K = dynamics.diffusion_steps
    W_u, W_sa, _, _ = dynamics.denoiser.split()
    table = level_table(dynamics) if table is None else table
    conditioning = join(
        torch.cat([dynamics.standardise(state), action], -1), torch.cat([ds / dynamics.state_std, da], -1)
    )  # (B, 1+T, d+m)
    constant = conditioning @ W_sa.mT  # (B, 1+T, w)
    c_u, c_net, sigma = dynamics.c_u, dynamics.c_net, dynamics.sigma
    u = torch.zeros_like(conditioning[..., : dynamics.state_dim])  # (B, 1+T, d), tangents 0: (27)
    u[:, 0] = dynamics.g(noise[:, -1])  # (23)
    for k in range(K, 0, -1):
        z = u @ W_u.mT
        z += constant
        z[:, 0] += table[k - 1]
        y = mlp_push(dynamics.denoiser.mlp, z)
        u = u.mul_(c_u[k - 1]).add_(y, alpha=c_net[k - 1])  # (24) in row 0, (29) and (31) below
        if sigma[k - 1]:
            u[:, 0].add_(noise[:, k - 1], alpha=sigma[k - 1])
    x, dx = split(u)
    tangents = dx * dynamics.out_std
    return dynamics.decode(state, x), tangents + ds if dynamics.target == "difference" else tangents


@dataclass
class ChainTape:
    """What `chain_adjoint` needs of a pass: the K denoiser tapes (entry k−1 for h_k), or only the latents to remake them."""

    tapes: list[MLPTape]
    latents: list[Tensor]  # s^(k) as entry k−1, (B, d)
    constant: Tensor  # W_sa (s, a), (B, w)
    table: Tensor  # (K, w)

    def denoiser(self, dynamics: ChainDynamics, k: int) -> MLPTape:
        """The tape of h_k's denoiser call."""
        if self.tapes:
            return self.tapes[k - 1]
        return _denoise(dynamics, self.latents[k - 1], self.constant, self.table[k - 1])[1]


def chain_record(
    dynamics: ChainDynamics,
    state: Tensor,
    action: Tensor,
    noise: Tensor,
    table: Tensor | None = None,
    *,
    recompute: bool = False,
) -> tuple[Tensor, ChainTape]:
    """f_θ(s, a, ε) (B, d) and its tape; arguments as in `chain_forward`.

    With `recompute` the tape holds the K latents (B, d) instead of the K·layers activations (B, width), and
    `chain_adjoint` evaluates the denoiser again.
    """
    K = dynamics.diffusion_steps
    _, W_sa, _, _ = dynamics.denoiser.split()
    table = level_table(dynamics) if table is None else table
    constant = torch.cat([dynamics.standardise(state), action], -1) @ W_sa.mT  # (B, w)
    u = dynamics.g(noise[:, -1])
    tapes: list[MLPTape] = []
    latents: list[Tensor] = []
    for k in range(K, 0, -1):
        y, tape = _denoise(dynamics, u, constant, table[k - 1])
        if recompute:
            latents.append(u)
        else:
            tapes.append(tape)
        u = (dynamics.c_u[k - 1] * u).add_(y, alpha=dynamics.c_net[k - 1])
        if dynamics.sigma[k - 1]:
            u.add_(noise[:, k - 1], alpha=dynamics.sigma[k - 1])
    return dynamics.decode(state, u), ChainTape(tapes[::-1], latents[::-1], constant, table)


def chain_adjoint(dynamics: ChainDynamics, tape: ChainTape, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """The transposed chain: λ (B, d) -> F_sᵀ λ (B, d), F_aᵀ λ (B, m).

    μ_0 = λ; for k = 1…K: v += (h_s, h_a)ᵀ μ, μ ← h_uᵀ μ. W_sa is applied once, to the sum over k of the first layer's z̄.
    """
    W_u, W_sa, _, _ = dynamics.denoiser.split()
    mu = cotangent * dynamics.out_std
    total = torch.zeros_like(tape.constant)
    for k in range(1, dynamics.diffusion_steps + 1):
        z_bar = mlp_pull(dynamics.denoiser.mlp, tape.denoiser(dynamics, k), dynamics.c_net[k - 1] * mu)
        total += z_bar
        mu = torch.addmm(mu, z_bar, W_u, beta=dynamics.c_u[k - 1])
    v = total @ W_sa
    v_s, v_a = v[:, : dynamics.state_dim] / dynamics.state_std, v[:, dynamics.state_dim :]
    return v_s + cotangent if dynamics.target == "difference" else v_s, v_a


def _denoise(dynamics: ChainDynamics, u: Tensor, constant: Tensor, row: Tensor) -> tuple[Tensor, MLPTape]:
    """The denoiser at one level: u (B, d), the constant part (B, w), the level's table row (w,) -> (B, d) and its tape."""
    W_u, _, _, _ = dynamics.denoiser.split()
    return mlp_record(dynamics.denoiser.mlp, torch.addmm(constant, u, W_u.mT).add_(row))
