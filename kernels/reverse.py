"""Inside a kernel: the reverse chain of a tile of particles with their tangents. (23), (24), (29), (31)

The latent stays in registers through all K steps, layers pass through the program's scratch (see `jacrec.kernels.rows`), and
weights are read from L2 once per layer, step and tile.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportAssignmentType=false
# the language of kernels is not Python's: what a checker takes for a tl.constexpr is any value that the compiler knows

import triton
import triton.language as tl

from jacrec.kernels.rows import at, finish, is_value, later_layers, output, small_product


@triton.jit
def condition(
    S, A, first, constant, D: tl.constexpr, M: tl.constexpr, STRIDE: tl.constexpr, NET: tl.constexpr, SHAPE: tl.constexpr
):
    """W_sa (s, a) of all rows into the scratch buffer `constant`: S (rows, DP) standardised, A (rows, MP)."""
    for n0 in range(0, NET.hidden[0], SHAPE.columns):
        cols = n0 + tl.arange(0, SHAPE.columns)
        z = small_product(S, first + D, cols, D, NET.hidden[0], 1, STRIDE, SHAPE)
        z += small_product(A, first + 2 * D, cols, M, NET.hidden[0], 1, STRIDE, SHAPE)
        tl.store(at(constant, cols, SHAPE), z)
    tl.debug_barrier()


@triton.jit
def denoise(
    u,
    row,
    constant,
    buffers,
    weights,
    biases,
    norms,
    slopes,
    hats,
    inv_std,
    live,
    D: tl.constexpr,
    STRIDE: tl.constexpr,
    NET: tl.constexpr,
    SHAPE: tl.constexpr,
    TAPED: tl.constexpr,
):
    """The denoiser's hidden layers at one level, from latent rows u (rows, DP) and the level's table row."""
    for n0 in range(0, NET.hidden[0], SHAPE.columns):
        cols = n0 + tl.arange(0, SHAPE.columns)
        z = small_product(u, weights[0], cols, D, NET.hidden[0], 1, STRIDE, SHAPE) + tl.load(at(constant, cols, SHAPE))
        t = tl.load(row + cols, mask=cols < NET.hidden[0], other=0.0)[None, :]
        z += tl.where(is_value(SHAPE), t, 0.0)
        finish(z, buffers, buffers, slopes, 0, live, cols, 0, NET, SHAPE, TAPED)
    later_layers(buffers, weights, biases, norms, 0, slopes, hats, inv_std, live, NET, SHAPE, TAPED)


@triton.jit
def reverse_chain(
    S,
    A,
    noise,
    live,
    table,
    steps,
    weights,
    biases,
    norms,
    scratch,
    slopes,
    hats,
    inv_std,
    latents,
    B,
    K: tl.constexpr,
    NOISES: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    DP: tl.constexpr,
    STRIDE: tl.constexpr,
    G: tl.constexpr,
    KEEP: tl.constexpr,
    NET: tl.constexpr,
    SHAPE: tl.constexpr,
):
    """s^(0) with its tangents, (rows, DP), from standardised state rows S (rows, DP) and action rows A (rows, MP).

    noise: (rows, 1) pointers to the NOISES rows of noise, 1 or K + 1, of each row's particle; live (rows, 1): the rows of
    particles that exist. KEEP: "nothing"; "slopes" for the adjoint, in slopes and hats (K, B, G) and inv_std (K, B, depth);
    or "latents" (K, B, d): (rows, 1) pointers to the first entry of each row's particle.
    """
    cols = tl.arange(0, DP)
    constant, buffers = scratch, scratch + SHAPE.rows * SHAPE.LD
    drawn = live & is_value(SHAPE) & (cols < D)[None, :]  # noise enters the values alone
    condition(S, A, weights[0], constant, D, M, STRIDE, NET, SHAPE)
    u = tl.load(noise + (NOISES - 1) * D + cols[None, :], mask=drawn, other=0.0)  # (23); tangents 0: (27)
    for i in range(K):
        entry = K - 1 - i  # of h_k in every table: k − 1
        if KEEP == "latents":
            tl.store(latents + entry * B * D + cols[None, :], u, mask=drawn)
        denoise(
            u,
            table + entry * NET.hidden[0],
            constant,
            buffers,
            weights,
            biases,
            norms,
            slopes + entry * B * G,
            hats + entry * B * G,
            inv_std + entry * B * len(NET.hidden),
            live,
            D,
            STRIDE,
            NET,
            SHAPE,
            KEEP == "slopes",
        )
        y = output(buffers, weights, biases, 0, DP, False, NET, SHAPE)
        z = tl.load(noise + entry * D + cols[None, :], mask=drawn & (NOISES > 1), other=0.0)
        # (24) in the value rows, (29) and (31) in the tangents
        u = tl.load(steps + entry) * u + tl.load(steps + K + entry) * y + tl.load(steps + 2 * K + entry) * z
        tl.debug_barrier()  # the next step writes where this one's output was read
    return u


@triton.jit(
    do_not_specialize=("B", "NOISE_STRIDE", "T", "ROUNDS"),
    do_not_specialize_on_alignment=("state", "action", "noise", "ds", "da"),
)
def chain_forward_kernel(
    next_state,
    tangents,
    state,
    action,
    noise,
    ds,
    da,
    state_mean,
    state_std,
    out_mean,
    out_std,
    table,
    steps,
    weights,
    biases,
    norms,
    scratch,
    B,
    NOISE_STRIDE,
    T,
    ROUNDS,
    K: tl.constexpr,
    NOISES: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    DP: tl.constexpr,
    MP: tl.constexpr,
    STRIDE: tl.constexpr,
    DIFFERENCE: tl.constexpr,
    NET: tl.constexpr,
    SHAPE: tl.constexpr,
):
    """Grid: programs along the particles, pieces of the tangents."""
    program = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    scratch += program * 3 * SHAPE.rows * SHAPE.LD
    HERE: tl.constexpr = SHAPE.rows // SHAPE.R
    row = tl.arange(0, SHAPE.rows)[:, None]
    c = tl.arange(0, DP)[None, :]
    a = tl.arange(0, MP)[None, :]
    mean = tl.load(state_mean + c, mask=c < D, other=0.0)
    std = tl.load(state_std + c, mask=c < D, other=1.0)
    for round in range(ROUNDS):
        particle = (tl.program_id(0).to(tl.int64) + round * tl.num_programs(0)) * HERE + row // SHAPE.R
        direction = tl.program_id(1) * (SHAPE.R - 1) + row % SHAPE.R - 1
        live = particle < B
        value = live & is_value(SHAPE)
        tangent = live & (row % SHAPE.R > 0) & (direction < T)
        along = particle * T + direction
        s = tl.load(state + particle * D + c, mask=value & (c < D), other=0.0)
        ds_rows = tl.load(ds + along * D + c, mask=tangent & (c < D), other=0.0)
        S = tl.where(value, s - mean, ds_rows) / std
        A = tl.load(action + particle * M + a, mask=value & (a < M), other=0.0)
        A += tl.load(da + along * M + a, mask=tangent & (a < M), other=0.0)
        u = reverse_chain(
            S,
            A,
            noise + particle * NOISE_STRIDE,
            live,
            table,
            steps,
            weights,
            biases,
            norms,
            scratch,
            scratch,
            scratch,
            scratch,
            scratch,
            B,
            K,
            NOISES,
            D,
            M,
            DP,
            STRIDE,
            0,
            "nothing",
            NET,
            SHAPE,
        )
        moved = u * tl.load(out_std + c, mask=c < D, other=0.0)
        decoded = moved + tl.load(out_mean + c, mask=c < D, other=0.0)  # (25)
        if DIFFERENCE:
            decoded += s
            moved += ds_rows
        tl.store(next_state + particle * D + c, decoded, mask=value & (direction < 0) & (c < D))
        tl.store(tangents + along * D + c, moved, mask=tangent & (c < D))
