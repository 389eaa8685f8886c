"""The kernels of the transposed reverse chain: the value pass that keeps a tape, and the pull back through it."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportAssignmentType=false
# the language of kernels is not Python's: what a checker takes for a tl.constexpr is any value that the compiler knows

import triton
import triton.language as tl

from jacrec.kernels.pull import pull_hidden
from jacrec.kernels.reverse import condition, denoise, reverse_chain
from jacrec.kernels.rows import at, product


@triton.jit(do_not_specialize=("B", "NOISE_STRIDE", "ROUNDS"), do_not_specialize_on_alignment=("state", "action", "noise"))
def chain_record_kernel(
    next_state,
    state,
    action,
    noise,
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
    slopes,
    hats,
    inv_std,
    latents,
    B,
    NOISE_STRIDE,
    ROUNDS,
    K: tl.constexpr,
    NOISES: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    DP: tl.constexpr,
    MP: tl.constexpr,
    STRIDE: tl.constexpr,
    G: tl.constexpr,
    DIFFERENCE: tl.constexpr,
    KEEP: tl.constexpr,
    NET: tl.constexpr,
    SHAPE: tl.constexpr,
):
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
        u = reverse_chain(
            (s - mean) / std,
            A,
            noise + particle * NOISE_STRIDE,
            live,
            table,
            steps,
            weights,
            biases,
            norms,
            scratch,
            slopes + particle * G,
            hats + particle * G,
            inv_std + particle * len(NET.hidden),
            latents + particle * D,
            tl.cast(B, tl.int64),
            K,
            NOISES,
            D,
            M,
            DP,
            STRIDE,
            G,
            KEEP,
            NET,
            SHAPE,
        )
        decoded = u * tl.load(out_std + c, mask=c < D, other=0.0) + tl.load(out_mean + c, mask=c < D, other=0.0)  # (25)
        if DIFFERENCE:
            decoded += s
        tl.store(next_state + particle * D + c, decoded, mask=live & (c < D))


@triton.jit(do_not_specialize=("B", "ROUNDS"), do_not_specialize_on_alignment=("cotangent", "state", "action"))
def chain_adjoint_kernel(
    v_s,
    v_a,
    cotangent,
    state,
    action,
    state_mean,
    state_std,
    out_std,
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
    ROUNDS,
    K: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    DP: tl.constexpr,
    MP: tl.constexpr,
    STRIDE: tl.constexpr,
    G: tl.constexpr,
    DIFFERENCE: tl.constexpr,
    RECOMPUTE: tl.constexpr,
    NET: tl.constexpr,
    SHAPE: tl.constexpr,
):
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
            tape_step = tl.cast(B, tl.int64)
        for n0 in range(0, NET.hidden[0], SHAPE.columns):
            cols = n0 + tl.arange(0, SHAPE.columns)
            tl.store(at(total, cols, SHAPE), tl.zeros((ROWS, COLUMNS), mu.dtype))
        for entry in range(K):  # k − 1
            row = tape_row + entry * tape_step
            if RECOMPUTE:
                u = tl.load(latents + (entry * tl.cast(B, tl.int64) + particle) * D + c, mask=live & (c < D), other=0.0)
                denoise(
                    u,
                    table + entry * NET.hidden[0],
                    constant,
                    buffers,
                    weights,
                    biases,
                    norms,
                    slopes + row * G,
                    hats + row * G,
                    inv_std + row * DEPTH,
                    live,
                    D,
                    STRIDE,
                    NET,
                    SHAPE,
                    True,
                )
            pull_hidden(
                tl.load(steps + K + entry) * mu,
                buffers,
                weights,
                norms,
                slopes + row * G,
                hats + row * G,
                inv_std + row * DEPTH,
                live,
                D,
                G,
                NET,
                SHAPE,
            )
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
