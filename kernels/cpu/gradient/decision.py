"""What follows the gradient in a decision: its norm, the step (4) in place, and the action, without a tensor in between.

Works on the job of `rollout`, whose networks, states and gradients it reads.
"""

import math

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.layout import layer_of, network_of
from jacrec.kernels.cpu.base.mlp import add_to, copy_to, record
from jacrec.kernels.cpu.base.rows import WORD
from jacrec.kernels.cpu.base.team import ALONE
from jacrec.kernels.cpu.base.tiles import at, integers, prefetch_to_write, size_of
from jacrec.kernels.cpu.gradient.copies import update_copies
from jacrec.kernels.cpu.gradient.job import Piece, read_piece, task_of
from jacrec.kernels.cpu.gradient.values import first_layer

PIECE = len(Piece._fields)
PREFETCH = 2
"""rows of ψ that are prefetched for writing: helpers have all read them"""


@part
def reduce_gradient(like, job):
    """After `rollout_gradient`: the sum of the shares' gradients, Ĵ (N,) in `values`, and ‖∇Ĵ‖².

    With one part, ‖∇Ĵ‖ of the pieces goes to `norms`. With several, the pieces are all of ψ, which all N states share, and
    each part's square goes to `squares`.
    """
    task = task_of(job)
    call, shares, size = task.call, task.sizes.shares, size_of(like)
    parts, length = call.parts, network_of(task.policies, 0).gradient
    _values(like, task)
    if parts == 1:
        if shares > 1:
            _sum_shares(like, task)
        norms = at(like, call.norms)
        for n in range(task.policies.count):
            norms[n] = type(like)(math.sqrt(_square(like, call, call.gradients + n * length * size)))
        return
    for s in range(parts):
        first, last = length * s // parts, length * (s + 1) // parts
        own = call.gradients + first * size
        for t in range(1, shares):
            add_to(like, last - first, integers(call.results)[t] + (t * length + first) * size, own)
        g, square = at(like, own), type(like)(0)
        for i in range(last - first):  # the padding of rows is zero
            square += g[i] * g[i]
        at(0.0, call.squares)[s] = square


@part
def _values(like, task):
    """Ĵ: the mean of each state's returns."""
    M, returns, values = task.sizes.M, at(like, task.call.returns), at(like, task.call.values)
    for n in range(task.sizes.rows // M):
        total = type(like)(0)
        for i in range(n * M, (n + 1) * M):
            total += returns[i]
        values[n] = total / type(like)(M)


@part
def _sum_shares(like, task):
    """Adds the gradients of all shares to those of the first share that has the policy: policy n in row n afterwards."""
    sizes, call = task.sizes, task.call
    M, rows, batched, shares = sizes.M, sizes.rows, sizes.batched, sizes.shares
    length = network_of(task.policies, 0).gradient
    row = length * size_of(like)
    for t in range(1, shares):
        first, last = rows * t // shares, rows * (t + 1) // shares
        n, end = (first // M, (last - 1) // M + 1) if batched else (0, 1)
        shared = not batched or first % M > 0
        for policy in range(n, end):
            source, target = integers(call.results)[t] + (policy + t) * row, call.gradients + policy * row
            if shared and policy == n:
                add_to(like, length, source, target)
            else:
                copy_to(like, length, source, target)


@part
def _square(like, call, gradient):
    """‖·‖² of the pieces of a policy's gradient, in the elements' type: a step whose norm overflows is rejected."""
    square = type(like)(0)
    for i in range(call.piece_count):
        piece = read_piece(call.pieces + i * PIECE * WORD)
        for r in range(piece.rows):
            g = at(like, gradient + (piece.start + r * piece.gradient_stride) * size_of(like))
            for c in range(piece.columns):
                square += g[c] * g[c]
    return square


@part
def apply_step(like, job):
    """ψ ← ψ + α ∇Ĵ (4) where everything involved is finite: then `accepted` is 1, else 0. After `reduce_gradient`."""
    task = task_of(job)
    sizes, call, size = task.sizes, task.call, size_of(like)
    parts, policies, N = call.parts, task.policies.count, sizes.rows // sizes.M
    length = network_of(task.policies, 0).gradient
    rates, values, norms = at(0.0, call.rates), at(like, call.values), at(like, call.norms)
    for s in range(parts):
        for n in range(policies):
            norm = norms[n]
            if parts > 1:
                square = 0.0
                for i in range(parts):
                    square += at(0.0, call.squares)[i]
                norm = type(like)(math.sqrt(square))
            finite = math.isfinite(norm * type(like)(rates[0]))
            for i in range(n if sizes.batched else 0, n + 1 if sizes.batched else N):
                finite = finite and math.isfinite(values[i])
            if s == 0:
                norms[n] = norm
                integers(call.accepted)[n] = 1 if finite else 0
            if finite:
                rate = rates[0]
                if rates[1] > 0 and norm > rates[1]:
                    rate *= rates[1] / norm
                first, last = length * s // parts, length * (s + 1) // parts
                _move(like, call, type(like)(rate), call.gradients + n * length * size, n, first, last)


@part
def _move(like, call, rate, gradient, n, first, last):
    """ψ_n ← ψ_n + rate · gradient, in the rows that begin in first … last − 1: this core has them in its cache."""
    size = size_of(like)
    for i in range(call.piece_count):
        piece = read_piece(call.pieces + i * PIECE * WORD)
        to, step, columns = piece.to + n * piece.policy_stride * size, piece.column_stride, piece.columns
        begin, end = _rows_before(first, piece), _rows_before(last, piece)
        for r in range(begin, end):
            g = at(like, gradient + (piece.start + r * piece.gradient_stride) * size)
            psi = at(like, to + r * piece.row_stride * size)
            if step == 1:
                ahead = to + (r + PREFETCH) * piece.row_stride * size
                if r + PREFETCH < end:
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
    beyond, step = offset - piece.start, piece.gradient_stride
    if beyond <= 0 or step == 0:
        return piece.rows if beyond > 0 else 0
    return min(piece.rows, (beyond + step - 1) // step)


@part
def evaluate_policy(like, job):
    """π_ψ at the N states, (N, m) in `actions`; ψ as it is now."""
    task = task_of(job)
    sizes, call, size = task.sizes, task.call, size_of(like)
    update_copies(like, task.constants.policy_copies)
    d, m, N = sizes.d, sizes.m, sizes.rows // sizes.M
    n = 0
    while n < N:
        rows = 1 if sizes.batched else min(N - n, sizes.tile)
        net = network_of(task.policies, n if sizes.batched else 0)
        first_layer(like, net, call.state + n * d * size, rows, call.memory, 1, 0, ALONE)
        record(like, net, call.memory, 1, 0, rows, layer_of(net, 0).bias, call.actions + n * m * size, ALONE)
        n += rows
