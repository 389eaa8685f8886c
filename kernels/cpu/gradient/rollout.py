"""The adjoint form of Theorem 4.1 for a run of particles, from the real state to the parameter gradient, in one call.

A tile of rows goes through all H steps and back before the next one starts: what a row needs is small, stays in the
nearest caches, and does not grow with the number of particles.
"""

import numpy as np

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.layout import BARS, BIAS, GRADIENT, LAYERS, OUT, PADDED, TAPE, WIDEST
from jacrec.kernels.cpu.base.mlp import add_to, copy_to, cotangents, parameter_gradients, record
from jacrec.kernels.cpu.base.team import FLAG, meet, muster
from jacrec.kernels.cpu.base.tiles import at, carray, fetch_add, integers, size_of
from jacrec.kernels.cpu.gradient.ensemble import pull_members, record_members
from jacrec.kernels.cpu.gradient.multistep import pull_step, record_step
from jacrec.kernels.cpu.gradient.transition import CHAIN as CHAIN_LENGTH
from jacrec.kernels.cpu.gradient.transition import (
    FROM_ACTIONS,
    MEMBERS,
    NOISES,
    SCALED,
    STEPS,
    pull_transition,
    record_transition,
)
from jacrec.kernels.cpu.gradient.values import critic_gradient, first_layer, input_cotangent, reward_gradient

# the job that threads share: a row of int64. First how it is divided, then sizes and addresses
NEXT, COMERS, ARRIVALS, DECISION = range(4)
"""counted up by the threads: the next share to be taken, the number of the next thread to come, how many of a crew are here;
and how many it has"""
SETTLING, ASCENDING = range(4, 6)
"""the next share of what `decision` does with the gradient"""
SHARES, CREW = range(6, 8)
"""shares of rows, one thread each; or CREW threads that carry out one share together"""
STATE_DIM, ACTION_DIM, HORIZON, PARTICLES, ROWS, BATCHED, TILE = range(8, 15)
"""ROWS: N·M, row n·M + m is particle m of state n; BATCHED: whether every real state has a policy of its own"""
POLICY, POLICIES, POLICY_LENGTH, REWARD, REWARD_LENGTH = range(15, 20)
CRITIC, CRITICS, CRITIC_LENGTH, DENOISER, DENOISER_LENGTH = range(20, 25)
"""networks as in `layout`, with their numbers and the lengths of their rows"""
CHAIN, STEP_COEFFICIENTS, SCALES, DISCOUNTS, WEIGHTS = range(25, 30)
"""the chain's row as in `transition`, c_u, c_net, σ (3, K), the reward's scales, γ^j (H+1,), γ^j times a row's share"""
STATE, NOISE, RETURNS, GRADIENTS, MEMORY, MEMORY_LENGTH = range(30, 36)
"""state (N, d), noise (N, M, H, K+1, d); returns (N·M,) and gradients, which are written; workspace of each share"""
VALUES, NORMS, ACCEPTED, ACTIONS, PIECES, PIECE_COUNT, RATES, OWN_COPIES, PARTS, SQUARES = range(36, 46)
"""of `decision`, which goes on with the job: Ĵ (N,), ‖∇Ĵ‖ and whether the step was taken (policies,), π_ψ (N, m), the pieces
of ψ that move, how far, the job of `copies` for the policy alone, in how many parts all this is done, and ‖·‖² of each"""
MEMBER, DENOISERS = range(46, 48)
"""of an ensemble: the network of every transition (N, M, H) of int64; how many there are, 1 for a chain"""
DOOR = 48
"""the flags of a crew, at the end of the job: `job_length`"""


def job_length(crew: int) -> int:
    """Numbers of a job, for so many threads in its crew."""
    return DOOR + crew * FLAG


@part
def buffers(d, m, H, policy, reward, critic, chain, denoiser, R):
    """Where the buffers of a tile of R rows start, in numbers; the last entry is their length."""
    K, first, critics, ensemble = chain[STEPS], denoiser[0, LAYERS + PADDED], critic.shape[0], min(1, chain[MEMBERS])
    scaled = chain[SCALED]
    widest = max(policy[0, WIDEST], reward[WIDEST], critic[0, WIDEST], denoiser[0, WIDEST])
    counts = (
        (H + 1) * d,
        (H + 1) * m,
        (H + 1) * d,
        (H + 1) * m,  # states, actions, gradients of the values by both
        d + m,
        d + m,
        first,
        d,
        denoiser[0, OUT],
        d,
        d,
        m,
        m,
        d,
        critics,
        1,  # scratch of one step
        first,
        (H + 1) * d,
        1,  # what a thread of a crew also has for itself; the rest is shared
        4 * widest,
        (H + 1) * policy[0, TAPE],
        (H + 1) * policy[0, BARS],
        reward[TAPE],
        critics * critic[0, TAPE],
        H * K * denoiser[0, TAPE],
        # of an ensemble the order of rows, two numbers for an int64, and rows in that order; ∂x/∂y of what scales noise
        2 * H * ensemble,
        (d + m) * ensemble,
        H * d * scaled,
    )
    starts = np.zeros(len(counts) + 1, dtype=np.int64)
    for i in range(len(counts)):
        starts[i + 1] = starts[i] + (counts[i] * R + 15) // 16 * 16
    return starts


@part
def rollout_gradient(like, job_address):
    """L of (3) for every row, and Σ w_i Π_ψ(i) of (22): takes shares of the job until none is left.

    A share is a run of rows. Its gradients are added up in rows of `GRADIENTS` that no other share writes: policy n of
    share t in row n + t (n = 0 for all where the policy is shared).
    """
    job = integers(job_address)
    d, m, H, M, rows, batched = job[STATE_DIM], job[ACTION_DIM], job[HORIZON], job[PARTICLES], job[ROWS], job[BATCHED]
    policy = carray(integers(job[POLICY]), (job[POLICIES], job[POLICY_LENGTH]))
    reward = carray(integers(job[REWARD]), (job[REWARD_LENGTH],))
    critic = carray(integers(job[CRITIC]), (job[CRITICS], job[CRITIC_LENGTH]))
    denoiser = carray(integers(job[DENOISER]), (job[DENOISERS], job[DENOISER_LENGTH]))
    chain = carray(integers(job[CHAIN]), (CHAIN_LENGTH,))
    steps = carray(at(like, job[STEP_COEFFICIENTS]), (3, chain[STEPS]))
    scales = carray(integers(job[SCALES]), (4,))
    discounts, weights = carray(at(like, job[DISCOUNTS]), (H + 1,)), carray(at(like, job[WEIGHTS]), (H + 1,))
    size, length, shares = size_of(like), policy[0, GRADIENT], job[SHARES]
    who = fetch_add(job_address + 8 * COMERS)
    crew = (who * 0, who * 0 + 1, who * 0)
    if job[CREW] > 1:
        strength = muster(who, job[CREW], job_address + 8 * ARRIVALS, job_address + 8 * DECISION)
        if strength == 0:
            return
        crew = (who, strength, job_address + 8 * DOOR)
    while True:
        # a crew has one share, and its threads go through it side by side
        t = fetch_add(job_address) if crew[1] == 1 else who * 0
        if t >= shares:
            break
        first, last = rows * t // shares, rows * (t + 1) // shares
        shared = job[MEMORY] + t * job[MEMORY_LENGTH] * size
        memory = shared + crew[0] * job[MEMORY_LENGTH] * size
        n = first // M if batched else first * 0
        own = (last - 1) // M - n + 1 if batched else first * 0 + 1
        gradient = job[GRADIENTS] + (n + t) * length * size
        sums = at(like, gradient)
        for i in range(own * length * crew[0] // crew[1], own * length * (crew[0] + 1) // crew[1]):
            sums[i] = type(like)(0)
        meet(crew)
        # tiles of equal height: the last one would otherwise be a sliver
        tiles = -(-(last - first) // job[TILE])
        for i in range(tiles):
            begin, end = first + (last - first) * i // tiles, first + (last - first) * (i + 1) // tiles
            _tile(
                like,
                d,
                m,
                H,
                M,
                batched,
                discounts,
                weights,
                steps,
                policy,
                reward,
                scales,
                critic,
                chain,
                denoiser,
                job[STATE],
                job[NOISE],
                job[MEMBER],
                begin,
                end,
                job[RETURNS],
                gradient - n * length * size,
                memory,
                shared,
                crew,
            )
        if crew[1] > 1:
            break


@part
def sum_shares(like, job_address):
    """Adds the gradients of all shares up in those of the first share that has the policy: policy n in row n afterwards."""
    job = integers(job_address)
    M, rows, batched, shares = job[PARTICLES], job[ROWS], job[BATCHED], job[SHARES]
    length = carray(integers(job[POLICY]), (job[POLICIES], job[POLICY_LENGTH]))[0, GRADIENT]
    bytes_ = length * size_of(like)
    for t in range(1, shares):
        first, last = rows * t // shares, rows * (t + 1) // shares
        n, end = (first // M, (last - 1) // M + 1) if batched else (first * 0, first * 0 + 1)
        shared = not batched or first % M > 0
        for policy in range(n, end):
            source, target = job[GRADIENTS] + (policy + t) * bytes_, job[GRADIENTS] + policy * bytes_
            if shared and policy == n:
                add_to(like, length, source, target)
            else:
                copy_to(like, length, source, target)


@part
def _tile(
    like,
    d,
    m,
    H,
    M,
    batched,
    discounts,
    weights,
    steps,
    policy,
    reward,
    scales,
    critic,
    chain,
    denoisers,
    state,
    noise,
    member,
    begin,
    end,
    returns,
    gradient,
    memory,
    shared,
    crew,
):
    K, size, R = chain[STEPS], size_of(like), end - begin
    # unpacked one by one: a comprehension here would start a pass of numba's that drops stores through pointers
    b = memory + buffers(d, m, H, policy, reward, critic, chain, denoisers, R) * size
    s, a, v_s, v_a, x, x_bar, constant, u, y, mu = b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9]
    p_s, p_a, w, lam, q, r_y, total, inputs, L = b[10], b[11], b[12], b[13], b[14], b[15], b[16], b[17], b[18]
    c = shared + (b - memory)
    work, policy_tape, bars, reward_tape, critic_tape, tape = c[19], c[20], c[21], c[22], c[23], c[24]
    order, xs, spread, denoiser = c[25], c[26], c[27], denoisers[0]
    step_s, step_a = R * d * size, R * m * size  # bytes of one step's states and actions
    zero = type(R)(0)
    noise_row = chain[NOISES] * d
    first_states, totals = at(like, s), at(like, L)
    for r in range(R):
        source = at(like, state + (begin + r) // M * d * size)
        for i in range(d):
            first_states[r * d + i] = source[i]
        totals[r] = type(like)(0)

    for j in range(H + 1):
        s_j, a_j = s + j * step_s, a + j * step_a
        r = zero
        while r < R:
            n, rows = _segment(begin, r, R, M, batched)
            net = policy[n]
            own = policy_tape + r * (H + 1) * net[TAPE] * size
            own_inputs = inputs + (r * (H + 1) + j * rows) * d * size
            to, source = at(like, own_inputs), at(like, s_j + r * d * size)
            for i in range(rows * d):
                to[i] = source[i]
            first_layer(like, net, own_inputs, rows, own, H + 1, j, crew)
            record(like, net, own, H + 1, j, rows, net[LAYERS + BIAS], a_j + r * m * size, crew)
            r += rows
        if j < H:
            reward_gradient(
                like,
                reward,
                scales,
                discounts[j],
                weights[j],
                R,
                d,
                m,
                s_j,
                a_j,
                reward_tape,
                x,
                r_y,
                work,
                L,
                v_s + j * step_s,
                v_a + j * step_a,
                crew,
            )
            noise_j = noise + (begin * H + j) * noise_row * size
            if chain[MEMBERS]:
                record_members(
                    like,
                    chain,
                    denoisers,
                    s_j,
                    a_j,
                    noise_j,
                    H * noise_row,
                    member + 8 * (begin * H + j),
                    H,
                    R,
                    tape + j * R * denoiser[TAPE] * size,
                    order + 8 * j * R,
                    x,
                    xs,
                    y,
                    spread + j * step_s,
                    s_j + step_s,
                )
            elif chain[FROM_ACTIONS]:
                record_step(
                    like,
                    chain,
                    denoiser,
                    j,
                    s,
                    a_j,
                    noise_j,
                    H * noise_row,
                    R,
                    tape,
                    H,
                    constant,
                    x,
                    y,
                    spread + j * step_s,
                    s_j + step_s,
                )
            else:
                record_transition(
                    like,
                    chain,
                    steps,
                    denoiser,
                    s_j,
                    a_j,
                    noise_j,
                    H * noise_row,
                    R,
                    tape,
                    H * K,
                    j * K,
                    x,
                    constant,
                    u,
                    y,
                    s_j + step_s,
                    crew,
                )
        else:
            critic_gradient(
                like,
                critic,
                discounts[H],
                weights[H],
                R,
                d,
                m,
                s_j,
                a_j,
                critic_tape,
                x,
                x_bar,
                q,
                work,
                L,
                v_s + j * step_s,
                v_a + j * step_a,
                crew,
            )

    pulled_s, pulled_a, w_j, lam_j = at(like, p_s), at(like, p_a), at(like, w), at(like, lam)
    for i in range(R * d):
        pulled_s[i] = type(like)(0)
    for i in range(R * m):
        pulled_a[i] = type(like)(0)
    for j in range(H, -1, -1):
        direct_s, direct_a = at(like, v_s + j * step_s), at(like, v_a + j * step_a)
        for i in range(R * m):
            w_j[i] = direct_a[i] + pulled_a[i]
        r = zero
        while r < R:
            n, rows = _segment(begin, r, R, M, batched)
            net = policy[n]
            own, own_bars = policy_tape + r * (H + 1) * net[TAPE] * size, bars + r * (H + 1) * net[BARS] * size
            z_bar = cotangents(
                like,
                net,
                own,
                H + 1,
                j,
                rows,
                w + r * m * size,
                a + j * step_a + r * m * size,
                work,
                own_bars,
                gradient + (n * net[GRADIENT] if batched else zero) * size,
                crew,
            )
            if j:
                input_cotangent(like, net, z_bar, rows, lam + r * d * size)
            r += rows
        if j:
            for i in range(R * d):
                lam_j[i] += direct_s[i] + pulled_s[i]
            if chain[MEMBERS]:
                pull_members(
                    like,
                    chain,
                    denoisers,
                    member + 8 * (begin * H + j - 1),
                    H,
                    R,
                    tape + (j - 1) * R * denoiser[TAPE] * size,
                    order + 8 * (j - 1) * R,
                    spread + (j - 1) * step_s,
                    lam,
                    y,
                    xs,
                    work,
                    p_s,
                    p_a,
                )
            elif chain[FROM_ACTIONS]:
                pull_step(like, chain, denoiser, j - 1, R, tape, H, lam, spread + (j - 1) * step_s, y, total, work, p_s, p_a)
            else:
                pull_transition(
                    like, chain, steps, denoiser, R, tape, H * K, (j - 1) * K, lam, mu, y, total, x, work, p_s, p_a, crew
                )

    r = zero
    while r < R:
        n, rows = _segment(begin, r, R, M, batched)
        net = policy[n]
        parameter_gradients(
            like,
            net,
            inputs + r * (H + 1) * d * size,
            policy_tape + r * (H + 1) * net[TAPE] * size,
            bars + r * (H + 1) * net[BARS] * size,
            H + 1,
            rows,
            gradient + (n * net[GRADIENT] if batched else zero) * size,
            crew,
        )
        r += rows
    if crew[0] == 0:
        copy_to(like, R, L, returns + begin * size)
    meet(crew)


@part
def _segment(begin, r, R, M, batched):
    """The policy of the tile's row r, and how many rows from there on share it."""
    if not batched:
        return type(R)(0), R - r
    n = (begin + r) // M
    return n, min(R - r, (n + 1) * M - begin - r)
