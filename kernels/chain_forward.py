"""The reverse chain with tangents in one launch; twin of `jacrec.engine.jacobians.chain.chain_forward`."""

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
from jacrec.kernels.reverse import chain_forward_kernel
from jacrec.kernels.served import DYNAMICS_SCALES, fitting, require_supported
from jacrec.models.dynamics import ChainDynamics


@torch.no_grad()
def chain_forward(
    dynamics: ChainDynamics,
    state: Tensor,
    action: Tensor,
    noise: Tensor,
    ds: Tensor,
    da: Tensor,
    table: Tensor | None = None,
    *,
    precision: str | None = None,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """f_θ(s, a, ε) and its derivative along T directions, in one launch that stores nothing.

    Args:
        state (B, d), action (B, m), noise (B, *noise_shape); ds (B, T, d) and da (B, T, m): the directions, T >= 0. table:
        `level_table(dynamics)`, for callers that have it. precision: of the products, "tf32x3" (default in float32 on a
        GPU), "ieee" or "tf32". tile: how the work is cut; default by size.

    Returns:
        next state (B, d) and its tangents F_s ds + F_a da, (B, T, d).

    Raises:
        ValueError: the kernels cannot serve these dynamics (see `jacrec.kernels.served.unsupported_reason`), or the precision; or an
            argument has another shape, dtype or device.
    """
    require_supported(dynamics)
    mlp, d, m, K = dynamics.denoiser.mlp, dynamics.state_dim, dynamics.action_dim, dynamics.diffusion_steps
    table = level_table(dynamics) if table is None else table
    sizes = fitting(
        dynamics.out_std,
        {
            "state": (state, ("B", d)),
            "action": (action, ("B", m)),
            "noise": (noise, ("B", dynamics.noises, d)),
            "ds": (ds, ("B", "T", d)),
            "da": (da, ("B", "T", m)),
            "table": (table, (K, mlp.hidden[0])),
        },
    )
    B, T = sizes["B"], sizes["T"]
    weights, biases, norms = parameters(mlp)
    noise = noise if noise.stride()[1:] == (d, 1) else noise.contiguous()
    tile = tile or choose_tile(B, T, state.dtype, state.device)
    p = plan(tile, B, T, max(mlp.hidden), check_precision(precision, state.dtype), state.device)
    next_state, tangents = torch.empty_like(state, memory_format=torch.contiguous_format), state.new_empty(B, T, d)
    start(
        chain_forward_kernel,
        p,
        next_state,
        tangents,
        state.contiguous(),
        action.contiguous(),
        noise,
        ds.contiguous(),
        da.contiguous(),
        *scales(dynamics, *DYNAMICS_SCALES),
        table.contiguous(),
        coefficients(dynamics, state),
        weights,
        biases,
        norms,
        p.scratch(state, 3),
        B,
        noise.stride(0),
        NOISES=dynamics.noises,
        T=T,
        ROUNDS=p.rounds,
        **chain_constants(dynamics),
    )
    return next_state, tangents
