"""Theorem 4.1 forward in time for a run of particles, in one call: rollout, tangents, and what is made of them.

A tile of rows goes through all H steps before the next one starts. At every step its tangents go through the dynamics beside
the values, so that each weight is read once; nothing of the chain is kept, and memory does not grow with K.
"""

from typing import NamedTuple

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.layout import network_of
from jacrec.kernels.cpu.base.mlp import copy_to, cotangents, parameter_gradients
from jacrec.kernels.cpu.base.rows import WORD, reader
from jacrec.kernels.cpu.base.shares import end_share, is_revoked
from jacrec.kernels.cpu.base.tangents import pull
from jacrec.kernels.cpu.base.team import ALONE, FLAG
from jacrec.kernels.cpu.base.tiles import at, size_of
from jacrec.kernels.cpu.base.waiting import nanoseconds
from jacrec.kernels.cpu.gradient.job import AT, read_scratch, read_tapes, task_of
from jacrec.kernels.cpu.gradient.rollout import act, add_term, begin_tile, write_path
from jacrec.kernels.cpu.gradient.tiling import clear_gradients, collect, gradient_of, next_tile, segment, take_share
from jacrec.kernels.cpu.gradient.transition import push_transition
from jacrec.kernels.cpu.gradient.values import input_cotangent, terminal_action

GRADIENT, JACOBIANS, GROWTH = range(3)
"""what is computed: Σ w_i Π_ψ(i) by factored sensitivities; every Jacobian of the rollout; ds̃_j/ds̃_0 alone"""
PUSHED_ROWS = 64
"""rows, values and tangents together, that pass through the layers of the dynamics at once"""


class Forward(NamedTuple):
    """What a job has beside `job.Task`, behind the flags of its only thread. Results are laid out by row: (N·M, …)."""

    kind: int = 0
    discounts: int = 0  # γ^j, (H+1,); JACOBIANS: those of the job are 1
    unit: int = 0  # GROWTH: the scale of each component of the state, (d,)
    states: int = 0  # JACOBIANS: s̃ (N·M, H+1, d), written
    actions: int = 0  # ã (N·M, H+1, m), written
    F_s: int = 0  # (N·M, H, d, d), written
    F_a: int = 0  # (N·M, H, d, m), written
    Pi_s: int = 0  # (N·M, H+1, m, d), written
    values_s: int = 0  # r_s and Q_s, (N·M, H+1, d), written
    values_a: int = 0  # r_a and Q_a, (N·M, H+1, m), written
    w: int = 0  # ∂L/∂ã_j, (N·M, H+1, m), written
    growth: int = 0  # GROWTH: ds̃_j/ds̃_0 times the unit, its columns as rows: (N·M, H+1, d, d), written
    ds: int = 0  # buffers, in bytes from the start of a thread's memory: tangents of the state (R, T, d)
    da: int = 0  # and of the action, (R, T, m)
    C: int = 0  # those of the next state, (R, T, d)
    unit_s: int = 0  # the unit directions of state and action, (R, d+m, d)
    unit_a: int = 0  # (R, d+m, m)
    columns: int = 0  # their tangents: the columns of [F_s, F_a], (R, d+m, d)
    Pi: int = 0  # Π_s, (R, m, d)
    bars: int = 0  # (R, m, m)
    weights: int = 0  # w, (R, H+1, m)
    pull: int = 0  # room for `mlp.pull`
    push: int = 0  # and for `push_transition`


FORWARD = AT.flags + FLAG
"""where it begins in a job"""
_read_forward = reader(Forward)


@part
def rollout_sensitivities(like, job):
    """Takes shares of the job until none is left, as `rollout_gradient` does."""
    task, own = task_of(job), _read_forward(job + FORWARD * WORD)
    sizes, call, division, size, memory = task.sizes, task.call, task.division, size_of(like), task.call.memory
    b, tapes = read_scratch(job + AT.scratch * WORD, memory), read_tapes(job + AT.tapes * WORD, memory)
    longest = 0
    while True:
        share = take_share(task, ALONE, longest)
        if share.number < 0:
            break
        if own.kind == GRADIENT:
            clear_gradients(like, task, share, ALONE)
        begin = share.first
        while begin < share.last:
            tile = next_tile(sizes, share, begin)
            begin_tile(like, task, tile, b)
            _advance(like, task, tile, b, tapes, own, memory)
            if call.path_s:
                write_path(like, task, tile, b)
            elif own.kind == GRADIENT:
                _contract(like, task, tile, b, tapes, own, memory)
                copy_to(like, tile.R, b.returns, call.returns + begin * size)
            elif own.kind == JACOBIANS:
                for r in range(tile.R):
                    _weights(like, sizes.H, sizes.d, sizes.m, own, begin + r, memory + own.ds)
            begin += tile.R
            if is_revoked(division, share.number):
                break
        if share.only or not end_share(division, share.number):
            break
        longest = max(longest, nanoseconds() - share.begun)
    collect(like, task, ALONE)


@part
def _advance(like, task, tile, b, tapes, own, memory):
    """The rollout of a tile with what its kind needs along the way; one call of each pass, which keeps compiled code small."""
    R, H, d, m, kind, path = tile.R, task.sizes.H, task.sizes.d, task.sizes.m, own.kind, task.call.path_s != 0
    units = d + m
    if kind == GROWTH:
        _begin_growth(like, R, d, own, memory)
    else:
        _unit_directions(like, R, d, m, own, memory)
    for j in range(H + 1):
        if j < task.sizes.acts:
            act(like, task, tile, j, b, tapes, ALONE)
        else:
            terminal_action(like, task, tile, b, tapes, ALONE)
        if kind == JACOBIANS:
            _begin_returns(like, R, tile.begin, j, b, task, own)
        if kind != GROWTH:
            add_term(like, task, tile, j, b, tapes, j > 0 or kind == JACOBIANS, ALONE)
        if not path and (kind == JACOBIANS or (j < H and (j > 0 or kind == GROWTH))):
            _policy_jacobian(like, task, tile, j, b, tapes, own, memory)
        T, ds, da, to = units, own.unit_s, own.unit_a, own.columns
        if kind == GRADIENT:
            if j < H and not path:
                _sensitivities(like, R, H, d, m, j, b, own, memory)
            if (j + 1) * m < units:
                T, ds, da, to = (j + 1) * m, own.ds, own.da, own.C
        elif kind == GROWTH:
            _write_growth(like, R, H, d, m, j, tile.begin, own, memory)
            T, ds, da, to = d, own.ds, own.da, own.C
        if path:
            T = 0
        if j < H:
            _push(like, task, tile, j, b, own, memory, T, memory + ds, memory + da, memory + to)
        if kind == JACOBIANS and not path:
            _write_jacobians(like, R, H, d, m, j, tile.begin, b, task, own, memory)
        elif kind == GRADIENT and to == own.columns and j < H and not path:
            _combine(like, R, (j + 1) * m, d, m, memory + own.columns, memory + own.ds, memory + own.da, memory + own.C)


@part
def _push(like, task, tile, j, b, own, memory, T, ds, da, tangents):
    """s_{j+1}, and F_s ds + F_a da into tangents (R, T, d), for ds (R, T, d), da (R, T, m)."""
    chain, net, size = task.chain, network_of(task.dynamics, 0), size_of(like)
    R, d, m, H = tile.R, task.sizes.d, task.sizes.m, task.sizes.H
    row = chain.noises * d
    blocks = -(-R // max(1, PUSHED_ROWS // (1 + T)))
    for i in range(blocks):
        r, end = R * i // blocks, R * (i + 1) // blocks
        push_transition(
            like,
            chain,
            net,
            b.states + (j * R + r) * d * size,
            b.actions + (j * R + r) * m * size,
            task.call.noise + ((tile.begin + r) * H + j) * row * size,
            H * row,
            ds + r * T * d * size,
            da + r * T * m * size,
            end - r,
            T,
            memory + own.push,
            b.states + ((j + 1) * R + r) * d * size,
            tangents + r * T * d * size,
        )


@part
def _unit_directions(like, R, d, m, own, memory):
    """The d+m unit tangents of state and action, for every row."""
    T = d + m
    ds, da = at(like, memory + own.unit_s), at(like, memory + own.unit_a)
    for r in range(R):
        for t in range(T):
            for i in range(d):
                ds[(r * T + t) * d + i] = type(like)(1 if i == t else 0)
            for i in range(m):
                da[(r * T + t) * m + i] = type(like)(1 if d + i == t else 0)


@part
def _policy_jacobian(like, task, tile, j, b, tapes, own, memory):
    """Π_s of step j, (R, m, d), after `act`."""
    sizes, R, size = task.sizes, tile.R, size_of(like)
    d, m, calls = sizes.d, sizes.m, sizes.acts
    bars = at(like, memory + own.bars)
    for r in range(R):
        for t in range(m):
            for i in range(m):
                bars[(r * m + t) * m + i] = type(like)(1 if i == t else 0)
    r = 0
    while r < R:
        n, rows = segment(sizes, tile, r)
        net = network_of(task.policies, n)
        tape, y = tapes.policy + r * calls * net.tape * size, b.actions + (j * R + r) * m * size
        z_bar = pull(like, net, tape, calls, j, rows, m, memory + own.bars + r * m * m * size, y, memory + own.pull)
        input_cotangent(like, net, z_bar, rows * m, memory + own.Pi + r * m * d * size)
        r += rows


@part
def _sensitivities(like, R, H, d, m, j, b, own, memory):
    """C_j and E_j of (10) into ds and da, T = j·m columns as rows and m new ones, and their terms of (22) into w."""
    T, size = j * m, size_of(like)
    for r in range(R):
        v_s, v_a = at(like, b.values_s + (j * R + r) * d * size), at(like, b.values_a + (j * R + r) * m * size)
        w, Pi = at(like, memory + own.weights + r * (H + 1) * m * size), at(like, memory + own.Pi + r * m * d * size)
        for t in range(T + m):
            ds = at(like, memory + own.ds + (r * (T + m) + t) * d * size)
            da = at(like, memory + own.da + (r * (T + m) + t) * m * size)
            if t < T:
                C, total = at(like, memory + own.C + (r * T + t) * d * size), w[t]
                for i in range(d):
                    ds[i] = C[i]
                    total += v_s[i] * C[i]
                for a in range(m):
                    along = type(like)(0)
                    for i in range(d):
                        along += Pi[a * d + i] * C[i]
                    da[a] = along
                    total += v_a[a] * along
                w[t] = total
            else:
                for i in range(d):
                    ds[i] = type(like)(0)
                for a in range(m):
                    da[a] = type(like)(1 if a == t - T else 0)
                w[t] = v_a[t - T]


@part
def _combine(like, R, T, d, m, columns, ds, da, C):
    """C (R, T, d) = F_s ds + F_a da (13), from the columns (R, d+m, d) of [F_s, F_a]."""
    size = size_of(like)
    for r in range(R):
        F = at(like, columns + r * (d + m) * d * size)
        for t in range(T):
            along_s, along_a = at(like, ds + (r * T + t) * d * size), at(like, da + (r * T + t) * m * size)
            to = at(like, C + (r * T + t) * d * size)
            for i in range(d):
                to[i] = type(like)(0)
            for k in range(d + m):
                along = along_s[k] if k < d else along_a[k - d]
                for i in range(d):
                    to[i] += F[k * d + i] * along


@part
def _contract(like, task, tile, b, tapes, own, memory):
    """The terms of the last step, and Σ_i w_i Π_ψ(i) of (22), added to the tile's gradient.

    The last action is not differentiated along C_H: its cotangent, which the gradient needs anyway, is λ_H.
    """
    sizes, R, H, size = task.sizes, tile.R, task.sizes.H, size_of(like)
    d, m, calls = sizes.d, sizes.m, sizes.acts
    r = 0
    while r < R:
        n, rows = segment(sizes, tile, r)
        net = network_of(task.policies, n)
        tape, bars = tapes.policy + r * calls * net.tape * size, tapes.bars + r * calls * net.bars * size
        gradient = gradient_of(like, task, tile, r)
        w_bar = at(like, b.w)
        for j in range(H, -1, -1):
            if j == calls:  # π₀'s action, whose derivative is in Q_s already
                lam = at(like, b.lam)
                for i in range(rows * d):
                    lam[i] = type(like)(0)
                _add_last(like, H, R, r, rows, d, m, b, own, memory)
            elif j == H:
                w, y = b.values_a + (H * R + r) * m * size, b.actions + (H * R + r) * m * size
                z_bar = cotangents(like, net, tape, calls, H, rows, w, y, tapes.work, bars, gradient, ALONE)
                if H:
                    input_cotangent(like, net, z_bar, rows, b.lam)
                    _add_last(like, H, R, r, rows, d, m, b, own, memory)
            else:
                for q in range(rows):
                    source = at(like, memory + own.weights + ((r + q) * (H + 1) + j) * m * size)
                    for i in range(m):
                        w_bar[q * m + i] = source[i]
                y = b.actions + (j * R + r) * m * size
                cotangents(like, net, tape, calls, j, rows, b.w, y, tapes.work, bars, gradient, ALONE)
        parameter_gradients(like, net, b.inputs + r * calls * d * size, tape, bars, calls, rows, gradient, ALONE)
        r += rows


@part
def _add_last(like, H, R, r, rows, d, m, b, own, memory):
    """w_i += λ_H C_{H,i} with λ_H = γ^H Q_s + Π_sᵀ w_H; Π_sᵀ w_H is in `lam`."""
    size = size_of(like)
    for q in range(rows):
        lam, direct = at(like, b.lam + q * d * size), at(like, b.values_s + (H * R + r + q) * d * size)
        w = at(like, memory + own.weights + (r + q) * (H + 1) * m * size)
        for t in range(H * m):
            C, total = at(like, memory + own.C + ((r + q) * H * m + t) * d * size), w[t]
            for i in range(d):
                total += (lam[i] + direct[i]) * C[i]
            w[t] = total


@part
def _begin_returns(like, R, begin, j, b, task, own):
    """Every step's term is found alone, since the job's discounts are 1; `_write_jacobians` adds it up."""
    total, returns = at(like, task.call.returns + begin * size_of(like)), at(like, b.returns)
    for r in range(R):
        if j == 0:
            total[r] = type(like)(0)
        returns[r] = type(like)(0)


@part
def _write_jacobians(like, R, H, d, m, j, begin, b, task, own, memory):
    """What a job asks for at step j of a tile."""
    total, returns = at(like, task.call.returns + begin * size_of(like)), at(like, b.returns)
    for r in range(R):
        total[r] += at(like, own.discounts)[j] * returns[r]
        _write_step(like, R, r, j, H, d, m, b, own, memory, begin + r)


@part
def _write_step(like, R, r, j, H, d, m, b, own, memory, row):
    """What `Forward` holds of step j of a row."""
    size = size_of(like)
    step = row * (H + 1) + j
    copy_to(like, d, b.states + (j * R + r) * d * size, own.states + step * d * size)
    copy_to(like, m, b.actions + (j * R + r) * m * size, own.actions + step * m * size)
    copy_to(like, d, b.values_s + (j * R + r) * d * size, own.values_s + step * d * size)
    copy_to(like, m, b.values_a + (j * R + r) * m * size, own.values_a + step * m * size)
    copy_to(like, m * d, memory + own.Pi + r * m * d * size, own.Pi_s + step * m * d * size)
    if j < H:
        columns = at(like, memory + own.columns + r * (d + m) * d * size)
        F_s, F_a = at(like, own.F_s + (row * H + j) * d * d * size), at(like, own.F_a + (row * H + j) * d * m * size)
        for i in range(d):
            for k in range(d):
                F_s[i * d + k] = columns[k * d + i]
            for k in range(m):
                F_a[i * m + k] = columns[(d + k) * d + i]


@part
def _weights(like, H, d, m, own, row, scratch):
    """w_j of a row: w_H = γ^H Q_a, and w_j = γ^j r_a + F_aᵀ λ_{j+1} with λ_j = γ^j r_s + F_sᵀ λ_{j+1} + Π_sᵀ w_j."""
    size, discounts = size_of(like), at(like, own.discounts)
    lam, pulled = at(like, scratch), at(like, scratch + d * size)
    for j in range(H, -1, -1):
        step = row * (H + 1) + j
        w, v_a, v_s = (
            at(like, own.w + step * m * size),
            at(like, own.values_a + step * m * size),
            at(like, own.values_s + step * d * size),
        )
        Pi = at(like, own.Pi_s + step * m * d * size)
        F_s, F_a = at(like, own.F_s + (row * H + j) * d * d * size), at(like, own.F_a + (row * H + j) * d * m * size)
        for a in range(m):
            total = discounts[j] * v_a[a]
            if j < H:
                for i in range(d):
                    total += F_a[i * m + a] * lam[i]
            w[a] = total
        for k in range(d):
            total = discounts[j] * v_s[k]
            if j < H:
                for i in range(d):
                    total += F_s[i * d + k] * lam[i]
            for a in range(m):
                total += Pi[a * d + k] * w[a]
            pulled[k] = total
        for k in range(d):
            lam[k] = pulled[k]


@part
def _begin_growth(like, R, d, own, memory):
    """The unit of each component as the first tangents."""
    unit, C = at(like, own.unit), at(like, memory + own.C)
    for r in range(R):
        for t in range(d):
            for i in range(d):
                C[(r * d + t) * d + i] = unit[i] if i == t else type(like)(0)


@part
def _write_growth(like, R, H, d, m, j, begin, own, memory):
    """ds̃_j/ds̃_0 times the unit, and with Π_s the tangents of the next step."""
    size = size_of(like)
    for r in range(R):
        C, Pi = memory + own.C + r * d * d * size, at(like, memory + own.Pi + r * m * d * size)
        copy_to(like, d * d, C, own.growth + ((begin + r) * (H + 1) + j) * d * d * size)
        copy_to(like, d * d, C, memory + own.ds + r * d * d * size)
        for t in range(d):
            along_s, along_a = at(like, C + t * d * size), at(like, memory + own.da + (r * d + t) * m * size)
            for a in range(m):
                total = type(like)(0)
                for i in range(d):
                    total += Pi[a * d + i] * along_s[i]
                along_a[a] = total
