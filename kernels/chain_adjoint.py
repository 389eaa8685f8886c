"""The transposed reverse chain, one launch each way; twins of `chain_record` and `chain_adjoint` of `jacrec.jacobians.chain`.

The value pass keeps the slopes of its K denoiser calls (and LayerNorm's x̂ and 1/σ), or only the K latents; then the
adjoint evaluates each call again, into a tape of its program that stays in L2.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from jacrec.kernels.chain_forward import condition, denoise, reverse_chain
from jacrec.kernels.launch import (
    Tile,
    check_precision,
    choose_tile,
    coefficients,
    demand_served,
    net,
    padded,
    parameters,
    plan,
)
from jacrec.kernels.pull import pull_hidden
from jacrec.kernels.rows import at, product
from torch import Tensor

from jacrec.dynamics import DiffusionDynamics
from jacrec.jacobians.chain import level_table


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


@triton.jit
def chain_record_kernel(
    next_state, state, action, noise, state_mean, state_std, out_mean, out_std, table, steps, weights, biases, norms,
    scratch, slopes, hats, inv_std, latents, B, NOISE_STRIDE,
    K: tl.constexpr, D: tl.constexpr, M: tl.constexpr, DP: tl.constexpr, MP: tl.constexpr,
    STRIDE: tl.constexpr, G: tl.constexpr, DIFFERENCE: tl.constexpr, KEEP: tl.constexpr, ROUNDS: tl.constexpr,
    NET: tl.constexpr, SHAPE: tl.constexpr,
):  # fmt: skip
    """One row per particle."""
    scratch += tl.program_id(0).to(tl.int64) * 3 * SHAPE.rows * SHAPE.LD
    c = tl.arange(0, DP)[None, :]
    a = tl.arange(0, MP)[None, :]
    mean = tl.load(state_mean + c, mask=c < D, other=0.0)
    std = tl.load(state_std + c, mask=c < D, other=1.0)
    for round in range(ROUNDS):
        tile = tl.program_id(0).to(tl.int64) + round * tl.num_programs(0)
        particle = tile * SHAPE.rows + tl.arange(0, SHAPE.rows)[:, None]
        live = particle < B
        s = tl.load(state + particle * D + c, mask=live & (c < D), other=0.0)
        A = tl.load(action + particle * M + a, mask=live & (a < M), other=0.0)
        u = reverse_chain((s - mean) / std, A, noise + particle * NOISE_STRIDE, live, table, steps, weights, biases,
                          norms, scratch, slopes + particle * G, hats + particle * G, inv_std + particle * len(NET.hidden),
                          latents + particle * D, B.to(tl.int64), K, D, M, DP, STRIDE, G, KEEP, NET,
                          SHAPE)  # fmt: skip
        decoded = u * tl.load(out_std + c, mask=c < D, other=0.0) + tl.load(out_mean + c, mask=c < D, other=0.0)  # (25)
        if DIFFERENCE:
            decoded += s
        tl.store(next_state + particle * D + c, decoded, mask=live & (c < D))


@triton.jit
def chain_adjoint_kernel(
    v_s, v_a, cotangent, state, action, state_mean, state_std, out_std, table, steps, weights, biases, norms,
    scratch, slopes, hats, inv_std, latents, B,
    K: tl.constexpr, D: tl.constexpr, M: tl.constexpr, DP: tl.constexpr, MP: tl.constexpr,
    STRIDE: tl.constexpr, G: tl.constexpr, DIFFERENCE: tl.constexpr, RECOMPUTE: tl.constexpr, ROUNDS: tl.constexpr,
    NET: tl.constexpr, SHAPE: tl.constexpr,
):  # fmt: skip
    """μ_0 = λ; for k = 1…K: v += (h_s, h_a)ᵀ μ, μ ← h_uᵀ μ. One row per particle.

    Scratch buffers: 0–1 z̄ (before, the activations that are evaluated again), 2–3 h̄, 4 Σ_k z̄ of the first layer,
    5 W_sa (s, a). With RECOMPUTE the tape is the program's own: (rows, G) instead of (K, B, G).
    """
    DEPTH: tl.constexpr = len(NET.hidden)
    SIZE: tl.constexpr = SHAPE.rows * SHAPE.LD
    ROWS: tl.constexpr = SHAPE.rows
    COLUMNS: tl.constexpr = SHAPE.columns
    program = tl.program_id(0).to(tl.int64)
    buffers = scratch + program * 6 * SIZE
    total = buffers + 4 * SIZE
    constant = buffers + 5 * SIZE
    local = tl.arange(0, SHAPE.rows)[:, None]
    c = tl.arange(0, DP)[None, :]
    a = tl.arange(0, MP)[None, :]
    std = tl.load(state_std + c, mask=c < D, other=1.0)
    for round in range(ROUNDS):
        particle = (program + round * tl.num_programs(0)) * SHAPE.rows + local
        live = particle < B
        lam = tl.load(cotangent + particle * D + c, mask=live & (c < D), other=0.0)
        mu = lam * tl.load(out_std + c, mask=c < D, other=0.0)
        if RECOMPUTE:
            tape_row = program * SHAPE.rows + local
            tape_step = 0
            s = tl.load(state + particle * D + c, mask=live & (c < D), other=0.0)
            S = (s - tl.load(state_mean + c, mask=c < D, other=0.0)) / std
            A = tl.load(action + particle * M + a, mask=live & (a < M), other=0.0)
            condition(S, A, weights[0], constant, D, M, STRIDE, NET, SHAPE)
        else:
            tape_row = particle
            tape_step = B.to(tl.int64)
        for n0 in range(0, NET.hidden[0], SHAPE.columns):
            cols = n0 + tl.arange(0, SHAPE.columns)
            tl.store(at(total, cols, SHAPE), tl.zeros((ROWS, COLUMNS), mu.dtype))
        for entry in range(K):  # k − 1
            row = tape_row + entry * tape_step
            if RECOMPUTE:
                u = tl.load(latents + (entry * B.to(tl.int64) + particle) * D + c, mask=live & (c < D), other=0.0)
                denoise(u, table + entry * NET.hidden[0], constant, buffers, weights, biases, norms, slopes + row * G,
                        hats + row * G, inv_std + row * DEPTH, live, D, STRIDE, NET, SHAPE, True)  # fmt: skip
            pull_hidden(tl.load(steps + K + entry) * mu, buffers, weights, norms, slopes + row * G, hats + row * G,
                        inv_std + row * DEPTH, live, D, G, NET, SHAPE)  # fmt: skip
            mu = tl.load(steps + entry) * mu + product(buffers, weights[0], 0, DP, NET.hidden[0], D, STRIDE, 1, SHAPE)
            for n0 in range(0, NET.hidden[0], SHAPE.columns):
                cols = n0 + tl.arange(0, SHAPE.columns)
                sum = tl.load(at(total, cols, SHAPE)) + tl.load(at(buffers, cols, SHAPE))
                tl.debug_barrier()
                tl.store(at(total, cols, SHAPE), sum)
            tl.debug_barrier()  # the next step writes where this one's z̄ was read
        through_s = product(total, weights[0] + D, 0, DP, NET.hidden[0], D, STRIDE, 1, SHAPE) / std
        through_a = product(total, weights[0] + 2 * D, 0, MP, NET.hidden[0], M, STRIDE, 1, SHAPE)
        if DIFFERENCE:
            through_s += lam
        tl.store(v_s + particle * D + c, through_s, mask=live & (c < D))
        tl.store(v_a + particle * M + a, through_a, mask=live & (a < M))
        tl.debug_barrier()  # the next tile writes where this one's total was read


@torch.no_grad()
def chain_record(
    dynamics: DiffusionDynamics,
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
    demand_served(dynamics)
    mlp, d, m, K, B = dynamics.denoiser.mlp, dynamics.state_dim, dynamics.action_dim, dynamics.diffusion_steps, state.shape[0]
    table = (level_table(dynamics) if table is None else table).contiguous()
    weights, biases, norms = parameters(mlp)
    noise = noise if noise.stride()[1:] == (d, 1) else noise.contiguous()
    G = sum(mlp.hidden)
    kept = (K, B) if not recompute else (0, 0)
    normed = kept if mlp.norms else (0, 0)
    tape = ChainTape(
        state.contiguous(), action.contiguous(), table, state.new_empty(*kept, G), state.new_empty(*normed, G),
        state.new_empty(*normed, len(mlp.hidden)), state.new_empty(*((K, B) if recompute else (0, 0)), d), recompute,
        check_precision(precision, state.dtype),
    )  # fmt: skip
    p = plan(tile or choose_tile(B, 0, state.dtype), B, 0, max(mlp.hidden), tape.precision, state.device)
    next_state = state.new_empty(B, d)
    chain_record_kernel[p.grid](
        next_state, tape.state, tape.action, noise, dynamics.state_mean, dynamics.state_std, dynamics.out_mean,
        dynamics.out_std, table, coefficients(dynamics, state), weights, biases,
        norms, p.scratch(state, 3), tape.slopes, tape.hats, tape.inv_std, tape.latents, B, noise.stride(0),
        K=K, D=d, M=m, DP=padded(d), MP=padded(m),
        STRIDE=mlp.layers[0].weight.shape[1], G=G, DIFFERENCE=dynamics.target == "difference",
        KEEP="latents" if recompute else "slopes", ROUNDS=p.rounds, NET=net(mlp), SHAPE=p.shape, **p.options,
    )  # fmt: skip
    return next_state, tape


@torch.no_grad()
def chain_adjoint(
    dynamics: DiffusionDynamics, tape: ChainTape, cotangent: Tensor, *, tile: Tile | None = None
) -> tuple[Tensor, Tensor]:
    """The transposed chain in one launch: λ (B, d) -> F_sᵀ λ (B, d), F_aᵀ λ (B, m), at the tape's precision."""
    demand_served(dynamics)
    mlp, d, m, K = dynamics.denoiser.mlp, dynamics.state_dim, dynamics.action_dim, dynamics.diffusion_steps
    B, G, depth = tape.state.shape[0], sum(mlp.hidden), len(mlp.hidden)
    weights, biases, norms = parameters(mlp)
    p = plan(tile or choose_tile(B, 0, cotangent.dtype), B, 0, max(mlp.hidden), tape.precision, cotangent.device)
    slopes, hats, inv_std = tape.slopes, tape.hats, tape.inv_std
    if tape.recompute:
        rows = p.programs * p.shape.rows
        slopes = cotangent.new_empty(rows, G)
        hats, inv_std = (cotangent.new_empty(rows if mlp.norms else 0, size) for size in (G, depth))
    v_s, v_a = cotangent.new_empty(B, d), cotangent.new_empty(B, m)
    chain_adjoint_kernel[p.grid](
        v_s, v_a, cotangent.contiguous(), tape.state, tape.action, dynamics.state_mean, dynamics.state_std, dynamics.out_std,
        tape.table, coefficients(dynamics, cotangent), weights, biases, norms,
        p.scratch(cotangent, 6), slopes, hats, inv_std, tape.latents, B,
        K=K, D=d, M=m, DP=padded(d), MP=padded(m),
        STRIDE=mlp.layers[0].weight.shape[1], G=G, DIFFERENCE=dynamics.target == "difference", RECOMPUTE=tape.recompute,
        ROUNDS=p.rounds, NET=net(mlp), SHAPE=p.shape, **p.options,
    )  # fmt: skip
    return v_s, v_a
