"""The transposed reverse chain, one launch each way; twins of `chain_record` and `chain_adjoint` of `jacrec.engine.jacobians.chain`.

The value pass keeps the slopes of its K denoiser calls (and LayerNorm's x̂ and 1/σ), or only the K latents; then the
adjoint evaluates each call again, into a tape of its program that stays in L2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from jacrec.engine.jacobians.chain import level_table
from jacrec.kernels.launch import (
    Tile,
    chain_constants,
    check_precision,
    choose_tile,
    coefficients,
    parameters,
    plan,
    scales,
    start,
)
from jacrec.kernels.served import DYNAMICS_SCALES, fitting, require_supported
from jacrec.kernels.transposed import chain_adjoint_kernel, chain_record_kernel
from jacrec.models.dynamics import ChainDynamics


@dataclass(frozen=True)
class ChainTape:
    """What `chain_adjoint` needs of a pass. B particles, depth hidden layers of `sum(hidden)` units."""

    state: Tensor  # (B, d)
    action: Tensor  # (B, m)
    table: Tensor  # (K, w)
    slopes: Tensor  # act'(z), (K, B, sum(hidden)); empty if recomputed
    hats: Tensor  # LayerNorm's x̂, the same shape; without LayerNorm empty
    inv_std: Tensor  # LayerNorm's 1/σ, (K, B, depth); without LayerNorm empty
    latents: Tensor  # s^(k) as entry k − 1, (K, B, d); empty unless recomputed
    recompute: bool
    precision: str


@torch.no_grad()
def chain_record(
    dynamics: ChainDynamics,
    state: Tensor,
    action: Tensor,
    noise: Tensor,
    table: Tensor | None = None,
    *,
    recompute: bool = False,
    precision: str | None = None,
    tile: Tile | None = None,
) -> tuple[Tensor, ChainTape]:
    """f_θ(s, a, ε) (B, d) and its tape, in one launch; arguments and errors as in `jacrec.kernels.chain_forward`.

    With `recompute` the tape holds the K latents (B, d) instead of the K·Σ hidden slopes per particle.
    """
    require_supported(dynamics)
    mlp, d, m, K = dynamics.denoiser.mlp, dynamics.state_dim, dynamics.action_dim, dynamics.diffusion_steps
    table = (level_table(dynamics) if table is None else table).contiguous()
    B = fitting(
        dynamics.out_std,
        {
            "state": (state, ("B", d)),
            "action": (action, ("B", m)),
            "noise": (noise, ("B", dynamics.noises, d)),
            "table": (table, (K, mlp.hidden[0])),
        },
    )["B"]
    weights, biases, norms = parameters(mlp)
    noise = noise if noise.stride()[1:] == (d, 1) else noise.contiguous()
    G = sum(mlp.hidden)
    kept = (K, B) if not recompute else (0, 0)
    normed = kept if mlp.norms else (0, 0)
    tape = ChainTape(
        state.contiguous(),
        action.contiguous(),
        table,
        state.new_empty(*kept, G),
        state.new_empty(*normed, G),
        state.new_empty(*normed, len(mlp.hidden)),
        state.new_empty(*((K, B) if recompute else (0, 0)), d),
        recompute,
        check_precision(precision, state.dtype),
    )
    p = plan(tile or choose_tile(B, 0, state.dtype, state.device), B, 0, max(mlp.hidden), tape.precision, state.device)
    next_state = state.new_empty(B, d)
    start(
        chain_record_kernel,
        p,
        next_state,
        tape.state,
        tape.action,
        noise,
        *scales(dynamics, *DYNAMICS_SCALES),
        table,
        coefficients(dynamics, state),
        weights,
        biases,
        norms,
        p.scratch(state, 3),
        tape.slopes,
        tape.hats,
        tape.inv_std,
        tape.latents,
        B,
        noise.stride(0),
        NOISES=dynamics.noises,
        G=G,
        KEEP="latents" if recompute else "slopes",
        ROUNDS=p.rounds,
        **chain_constants(dynamics),
    )
    return next_state, tape


@torch.no_grad()
def chain_adjoint(
    dynamics: ChainDynamics, tape: ChainTape, cotangent: Tensor, *, tile: Tile | None = None
) -> tuple[Tensor, Tensor]:
    """The transposed chain in one launch: λ (B, d) -> F_sᵀ λ (B, d), F_aᵀ λ (B, m), at the tape's precision.

    Raises:
        ValueError: as `chain_record`; or the tape is not one of these dynamics, or the cotangent not one of its states.
    """
    require_supported(dynamics)
    mlp, d, m, K = dynamics.denoiser.mlp, dynamics.state_dim, dynamics.action_dim, dynamics.diffusion_steps
    G, depth = sum(mlp.hidden), len(mlp.hidden)
    kept = ("latents", d) if tape.recompute else ("slopes", G)
    B = fitting(
        dynamics.out_std,
        {
            "tape.state": (tape.state, ("B", d)),
            "tape.action": (tape.action, ("B", m)),
            "tape.table": (tape.table, (K, mlp.hidden[0])),
            f"tape.{kept[0]}": (getattr(tape, kept[0]), (K, "B", kept[1])),
            "cotangent": (cotangent, ("B", d)),
        },
    )["B"]
    state_mean, state_std, _, out_std = scales(dynamics, *DYNAMICS_SCALES)
    weights, biases, norms = parameters(mlp)
    p = plan(
        tile or choose_tile(B, 0, cotangent.dtype, cotangent.device), B, 0, max(mlp.hidden), tape.precision, cotangent.device
    )
    slopes, hats, inv_std = tape.slopes, tape.hats, tape.inv_std
    if tape.recompute:
        rows = p.programs * p.shape.rows
        slopes = cotangent.new_empty(rows, G)
        hats, inv_std = (cotangent.new_empty(rows if mlp.norms else 0, size) for size in (G, depth))
    v_s, v_a = cotangent.new_empty(B, d), cotangent.new_empty(B, m)
    start(
        chain_adjoint_kernel,
        p,
        v_s,
        v_a,
        cotangent.contiguous(),
        tape.state,
        tape.action,
        state_mean,
        state_std,
        out_std,
        tape.table,
        coefficients(dynamics, cotangent),
        weights,
        biases,
        norms,
        p.scratch(cotangent, 6),
        slopes,
        hats,
        inv_std,
        tape.latents,
        B,
        G=G,
        RECOMPUTE=tape.recompute,
        ROUNDS=p.rounds,
        **chain_constants(dynamics),
    )
    return v_s, v_a
