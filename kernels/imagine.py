"""The kernel of a whole imagined rollout with its sensitivities: policy, reward, reverse chain, critic over H steps.

Everything that Theorem 4.1 asks for is a tangent. A particle's rows are its value and the (H+1) m factored columns of
`jacrec.engine.sensitivities`: column (i, l) carries the derivative by component l of the action ã_i. Pushed through the policy,
the C of a column becomes its E (10), with a unit vector at time i; through the reward it becomes r_s C + r_a E (16), what w_i
gathers; through the chain, the next C (13). No gradient of reward or critic and no Jacobian is formed.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportAssignmentType=false
# the language of kernels is not Python's: what a checker takes for a tl.constexpr is any value that the compiler knows

import triton
import triton.language as tl

from jacrec.kernels.reverse import reverse_chain
from jacrec.kernels.rows import finish, is_value, later_layers, output, small_product, value_rows


@triton.jit
def network(
    X,
    A,
    n,
    weights,
    biases,
    norms,
    buffers,
    live,
    D: tl.constexpr,
    M: tl.constexpr,
    C: tl.constexpr,
    TANH: tl.constexpr,
    NET: tl.constexpr,
    SHAPE: tl.constexpr,
):
    """Rows of network n at inputs X (D of its columns) and A (M, may be 0): (rows, C), zero from column `out` on."""
    IN: tl.constexpr = D + M
    W: tl.constexpr = NET.hidden[0]
    first = weights[0] + n * W * IN
    for n0 in range(0, W, SHAPE.columns):
        cols = n0 + tl.arange(0, SHAPE.columns)
        z = small_product(X, first, cols, D, W, 1, IN, SHAPE)
        if M > 0:
            z += small_product(A, first + D, cols, M, W, 1, IN, SHAPE)
        b = tl.load(biases[0] + n * W + cols, mask=cols < W, other=0.0)[None, :]
        z += tl.where(is_value(SHAPE), b, 0.0)
        finish(z, buffers, buffers, buffers, 0, live, cols, 0, NET, SHAPE, False)
    later_layers(buffers, weights, biases, norms, n, buffers, buffers, buffers, live, NET, SHAPE, False)
    y = output(buffers, weights, biases, n, C, TANH, NET, SHAPE)
    tl.debug_barrier()  # the next network writes where this one's output was read
    return y


@triton.jit(do_not_specialize=("PARTICLES", "GROUP"), do_not_specialize_on_alignment=("state", "noise"))
def rollout_kernel(
    returns,
    w,
    states,
    state,
    noise,
    discounts,
    state_mean,
    state_std,
    out_mean,
    out_std,
    table,
    steps,
    weights,
    biases,
    norms,
    policy_weights,
    policy_biases,
    policy_norms,
    reward_mean,
    reward_std,
    reward_state_mean,
    reward_state_std,
    reward_weights,
    reward_biases,
    reward_norms,
    critic_weights,
    critic_biases,
    critic_norms,
    scratch,
    PARTICLES,
    GROUP,
    H: tl.constexpr,
    K: tl.constexpr,
    NOISES: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    DP: tl.constexpr,
    MP: tl.constexpr,
    STRIDE: tl.constexpr,
    DIFFERENCE: tl.constexpr,
    CRITICS: tl.constexpr,
    NET: tl.constexpr,
    POLICY: tl.constexpr,
    REWARD: tl.constexpr,
    CRITIC: tl.constexpr,
    SHAPE: tl.constexpr,
):
    """Grid: tiles of a group, pieces of the columns, groups of GROUP particles that share a policy.

    PARTICLES (M of the paper) follow each real state. All inputs are contiguous; returns (B,), w (B, (H+1) M), states
    (H+1, B, d) for B particles in all. H is a constant of the compiler: as a run-time integer it takes 56 to 136 bytes of stack
    for sm_90, where now there are 0 to 16.
    """
    T: tl.constexpr = (H + 1) * M
    OUT: tl.constexpr = 16
    dtype: tl.constexpr = returns.dtype.element_ty
    ROWS: tl.constexpr = SHAPE.rows
    group = tl.program_id(2).to(tl.int64)
    program = (group * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    scratch += program * 3 * SHAPE.rows * SHAPE.LD
    buffers = scratch + SHAPE.rows * SHAPE.LD
    row = tl.arange(0, SHAPE.rows)[:, None]
    c = tl.arange(0, DP)[None, :]
    a = tl.arange(0, MP)[None, :]
    within = tl.program_id(0) * (SHAPE.rows // SHAPE.R) + row // SHAPE.R
    live = within < GROUP
    B = tl.num_programs(2) * GROUP
    particle = group * GROUP + within
    column = tl.program_id(1) * (SHAPE.R - 1) + row % SHAPE.R - 1
    value = live & is_value(SHAPE)
    tangent = live & (row % SHAPE.R > 0) & (column < T)
    told = value & (column < 0)  # the first piece tells the values
    mean = tl.load(state_mean + c, mask=c < D, other=0.0)
    std = tl.load(state_std + c, mask=c < D, other=1.0)
    r_mean = tl.load(reward_state_mean + c, mask=c < D, other=0.0)
    r_std = tl.load(reward_state_std + c, mask=c < D, other=1.0)
    o_mean = tl.load(out_mean + c, mask=c < D, other=0.0)
    o_std = tl.load(out_std + c, mask=c < D, other=0.0)
    # value rows: s̃_j, ã_j, the return; tangent rows: C, E, w of their column
    s = tl.load(state + particle // PARTICLES * D + c, mask=value & (c < D), other=0.0)
    gathered = tl.zeros((ROWS, 1), dtype)
    for j in range(H):
        tl.store(states + (j * B + particle) * D + c, s, mask=told & (c < D))
        act = network(s, s, group, policy_weights, policy_biases, policy_norms, buffers, live, D, 0, MP, True, POLICY, SHAPE)
        act += tl.where(tangent & (column - j * M == a) & (a < M), 1.0, 0.0)  # (10): E_{j,j} = I
        scaled = tl.where(is_value(SHAPE), s - r_mean, s) / r_std
        r = network(scaled, act, 0, reward_weights, reward_biases, reward_norms, buffers, live, D, M, OUT, False, REWARD, SHAPE)
        r = tl.sum(r, 1, keep_dims=True) * tl.load(reward_std)
        gathered += tl.load(discounts + j) * (r + tl.where(is_value(SHAPE), tl.load(reward_mean), 0.0))  # (22)
        scaled = tl.where(is_value(SHAPE), s - mean, s) / std
        u = reverse_chain(
            scaled,
            act,
            noise + (particle * H + j) * NOISES * D,
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
        moved = u * o_std + tl.where(is_value(SHAPE), o_mean, 0.0)  # (25), (13)
        s = tl.where(live, s + moved if DIFFERENCE else moved, 0.0)
    tl.store(states + (H * B + particle) * D + c, s, mask=told & (c < D))
    act = network(s, s, group, policy_weights, policy_biases, policy_norms, buffers, live, D, 0, MP, True, POLICY, SHAPE)
    act += tl.where(tangent & (column - H * M == a) & (a < M), 1.0, 0.0)
    least = tl.zeros((ROWS, 1), dtype)
    ties = tl.zeros((ROWS, 1), dtype)
    for i in range(CRITICS):
        q = network(s, act, i, critic_weights, critic_biases, critic_norms, buffers, live, D, M, OUT, False, CRITIC, SHAPE)
        q = tl.sum(q, 1, keep_dims=True)
        # the smallest value with its tangents, NaN the smallest of all; where critics tie, the sum of their tangents
        here, best = value_rows(q, SHAPE.R), value_rows(least, SHAPE.R)
        below = (ties == 0.0) | (here < best) | (here != here)
        equal = (ties > 0.0) & (here == best)
        least = tl.where(below | (equal & is_value(SHAPE)), q, tl.where(equal, least + q, least))
        ties = tl.where(below, 1.0, tl.where(equal, ties + 1.0, ties))
    gathered += tl.load(discounts + H) * (least / tl.where(is_value(SHAPE), 1.0, ties))  # (19)
    tl.store(returns + particle, gathered, mask=told)
    tl.store(w + particle * T + column, gathered, mask=tangent)
