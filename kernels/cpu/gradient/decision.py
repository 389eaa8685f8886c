"""What follows the gradient in a decision: its norm, the step (4) in place, and the action, without a tensor in between.

They go on with the job of `rollout`, whose networks, states and gradients they read.
"""

import math

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.layout import BIAS, GRADIENT, LAYERS
from jacrec.kernels.cpu.base.mlp import add_to, record
from jacrec.kernels.cpu.base.tiles import at, carray, fetch_add, integers, prefetch_to_write, size_of
from jacrec.kernels.cpu.gradient.copies import copy_again
from jacrec.kernels.cpu.gradient.rollout import (
    ACCEPTED,
    ACTION_DIM,
    ACTIONS,
    ASCENDING,
    BATCHED,
    GRADIENTS,
    MEMORY,
    NORMS,
    OWN_COPIES,
    PARTICLES,
    PARTS,
    PIECE_COUNT,
    PIECES,
    POLICIES,
    POLICY,
    POLICY_LENGTH,
    RATES,
    RETURNS,
    ROWS,
    SETTLING,
    SHARES,
    SQUARES,
    STATE,
    STATE_DIM,
    TILE,
    VALUES,
    sum_shares,
)
from jacrec.kernels.cpu.gradient.values import first_layer

TO, TO_STEP, TO_ROW_STEP, TO_COLUMN_STEP, FROM, FROM_ROW_STEP, PIECE_ROWS, PIECE_COLUMNS = range(8)
"""of a parameter of ψ: where it lies, elements from one policy, row and column to the next; where its gradient starts in a
policy's vector, elements from row to row there, and the sizes of both. Columns are what lies side by side in the gradient"""
PIECE = 8
AHEAD = 2
"""rows of ψ that are asked for before they are changed: the threads of the gradient have all read them"""


@part
def settle(like, job_address):
    """After `rollout_gradient`: the shares' gradients added up, Ĵ (N,) in VALUES, and what ascends by how much.

    ‖∇Ĵ‖ of the PIECES goes to NORMS where there is one part; else they are all of ψ, which all N states share, and every part's
    square goes to SQUARES.
    """
    job, size = integers(job_address), size_of(like)
    parts, length = job[PARTS], carray(integers(job[POLICY]), (job[POLICIES], job[POLICY_LENGTH]))[0, GRADIENT]
    while True:
        s = fetch_add(job_address + 8 * SETTLING)
        if s >= parts:
            break
        if s == 0:
            _values(like, job)
        if parts == 1:
            if job[SHARES] > 1:
                sum_shares(like, job_address)
            norms = at(like, job[NORMS])
            for n in range(job[POLICIES]):
                norms[n] = type(like)(math.sqrt(_square(like, job, job[GRADIENTS] + n * length * size)))
            continue
        first, last = length * s // parts, length * (s + 1) // parts
        own = job[GRADIENTS] + first * size
        for t in range(1, job[SHARES]):
            add_to(like, last - first, own + t * length * size, own)
        g, square = at(like, own), type(like)(0)
        for i in range(last - first):  # the ends of padded rows are zero
            square += g[i] * g[i]
        at(0.0, job[SQUARES])[s] = square


@part
def _values(like, job):
    """Ĵ: the mean of each state's returns."""
    M, returns, values = job[PARTICLES], at(like, job[RETURNS]), at(like, job[VALUES])
    for n in range(job[ROWS] // M):
        total = type(like)(0)
        for i in range(n * M, (n + 1) * M):
            total += returns[i]
        values[n] = total / type(like)(M)


@part
def _square(like, job, gradient):
    """‖·‖² of the pieces of a policy's gradient, in the elements' type: what overflows is refused."""
    pieces, square = carray(integers(job[PIECES]), (job[PIECE_COUNT], PIECE)), type(like)(0)
    for i in range(job[PIECE_COUNT]):
        for r in range(pieces[i, PIECE_ROWS]):
            g = at(like, gradient + (pieces[i, FROM] + r * pieces[i, FROM_ROW_STEP]) * size_of(like))
            for c in range(pieces[i, PIECE_COLUMNS]):
                square += g[c] * g[c]
    return square


@part
def ascend(like, job_address):
    """ψ ← ψ + α ∇Ĵ (4) where all that it takes is finite: then ACCEPTED is 1, else 0. After `settle`.

    RATES: α and the longest gradient, 0 for any, in float64. ACCEPTED is of int64.
    """
    job, size = integers(job_address), size_of(like)
    parts, policies, N = job[PARTS], job[POLICIES], job[ROWS] // job[PARTICLES]
    length = carray(integers(job[POLICY]), (policies, job[POLICY_LENGTH]))[0, GRADIENT]
    rates, values, norms = at(0.0, job[RATES]), at(like, job[VALUES]), at(like, job[NORMS])
    while True:
        s = fetch_add(job_address + 8 * ASCENDING)
        if s >= parts:
            break
        for n in range(policies):
            norm = norms[n]
            if parts > 1:
                square = 0.0
                for i in range(parts):
                    square += at(0.0, job[SQUARES])[i]
                norm = type(like)(math.sqrt(square))
            fine = math.isfinite(norm * type(like)(rates[0]))
            for i in range(n if job[BATCHED] else 0, n + 1 if job[BATCHED] else N):
                fine = fine and math.isfinite(values[i])
            if s == 0:
                norms[n] = norm
                integers(job[ACCEPTED])[n] = 1 if fine else 0
            if fine:
                rate = rates[0]
                if rates[1] > 0 and norm > rates[1]:
                    rate *= rates[1] / norm
                first, last = length * s // parts, length * (s + 1) // parts
                _step(like, job, type(like)(rate), job[GRADIENTS] + n * length * size, n, first, last)


@part
def _step(like, job, rate, gradient, n, first, last):
    """ψ_n ← ψ_n + rate · gradient, the rows that begin in first … last − 1: they are in this core's cache since `settle`."""
    pieces, size = carray(integers(job[PIECES]), (job[PIECE_COUNT], PIECE)), size_of(like)
    for i in range(job[PIECE_COUNT]):
        to, step, columns = pieces[i, TO] + n * pieces[i, TO_STEP] * size, pieces[i, TO_COLUMN_STEP], pieces[i, PIECE_COLUMNS]
        begin, end = _rows_before(first, pieces[i]), _rows_before(last, pieces[i])
        for r in range(begin, end):
            g = at(like, gradient + (pieces[i, FROM] + r * pieces[i, FROM_ROW_STEP]) * size)
            psi = at(like, to + r * pieces[i, TO_ROW_STEP] * size)
            if step == 1:
                ahead = to + (r + AHEAD) * pieces[i, TO_ROW_STEP] * size
                if r + AHEAD < end:
                    for line in range(ahead, ahead + columns * size, 64):
                        prefetch_to_write(line)
                for c in range(columns):
                    psi[c] += rate * g[c]
            else:
                for c in range(columns):
                    psi[c * step] += rate * g[c]


@part
def _rows_before(offset, piece):
    """How many rows of a piece begin before an offset in a policy's vector."""
    beyond, step = offset - piece[FROM], piece[FROM_ROW_STEP]
    if beyond <= 0 or step == 0:
        return piece[PIECE_ROWS] if beyond > 0 else beyond * 0
    return min(piece[PIECE_ROWS], (beyond + step - 1) // step)


@part
def act(like, job_address):
    """π_ψ at the N states, (N, m) at ACTIONS; ψ as it is now."""
    job, size = integers(job_address), size_of(like)
    copy_again(like, job[OWN_COPIES])
    d, m, N, batched = job[STATE_DIM], job[ACTION_DIM], job[ROWS] // job[PARTICLES], job[BATCHED]
    policies = carray(integers(job[POLICY]), (job[POLICIES], job[POLICY_LENGTH]))
    n = N * 0
    alone, zero, one = (n, n + 1, n), n, n + 1
    while n < N:
        rows = one if batched else min(N - n, job[TILE])
        net = policies[n if batched else zero]
        first_layer(like, net, job[STATE] + n * d * size, rows, job[MEMORY], one, zero, alone)
        record(like, net, job[MEMORY], one, zero, rows, net[LAYERS + BIAS], job[ACTIONS] + n * m * size, alone)
        n += rows
