"""The adjoint form of Theorem 4.1 for a run of particles, from the real state to the parameter gradient, in one call.

A tile of rows goes through all H steps and back before the next one starts: what a row needs is small, stays in the
nearest caches, and does not grow with the number of particles.
"""

from typing import NamedTuple

from jacrec.kernels.cpu.base.host import glue, part
from jacrec.kernels.cpu.base.layout import layer_of, network_of
from jacrec.kernels.cpu.base.mlp import copy_to, cotangents, parameter_gradients, record
from jacrec.kernels.cpu.base.rows import WORD
from jacrec.kernels.cpu.base.shares import end_share, helper_of, is_revoked, next_share, owner_of
from jacrec.kernels.cpu.base.team import ALONE, Team, barrier, join_team
from jacrec.kernels.cpu.base.tiles import at, integers, size_of
from jacrec.kernels.cpu.base.waiting import nanoseconds
from jacrec.kernels.cpu.gradient.ensemble import pull_members, record_members
from jacrec.kernels.cpu.gradient.job import ARRIVALS, AT, TEAM_SIZE, Lent, read_lent, read_scratch, read_tapes, task_of
from jacrec.kernels.cpu.gradient.multistep import pull_step, record_step
from jacrec.kernels.cpu.gradient.transition import pull_transition, record_transition
from jacrec.kernels.cpu.gradient.values import (
    anchor_gradient,
    critic_gradient,
    first_layer,
    given_gradient,
    input_cotangent,
    reward_gradient,
)

LENT = len(Lent._fields)


class Tile(NamedTuple):
    """Rows that pass through all layers together."""

    begin: int  # the first one's number among all rows
    R: int


@part
def rollout_gradient(like, job):
    """L of (3) for every row, and Σ w_i Π_ψ(i) of (22): takes shares of the job until none is left.

    A share is a run of rows. Its gradients are summed in rows of `Call.gradients` that no other share writes: policy n of
    share t in row n + t (n = 0 for all where the policy is shared). A helper has a row of its own, with its own memory.
    """
    task = task_of(job)
    sizes, call, division, size = task.sizes, task.call, task.division, size_of(like)
    length, room = network_of(task.policies, 0).gradient, call.memory_length * size
    team = ALONE
    if sizes.team > 1:
        # a team has one share, which its threads work on side by side
        common = division.owners if division.helper else job
        members = join_team(division.helper, sizes.team, common + ARRIVALS * WORD, common + TEAM_SIZE * WORD)
        if members == 0:
            return
        team = Team(division.helper, members, common + AT.flags * WORD)
    # a caller without helpers takes all shares together: their rows use every weight loaded, and the bits are the same
    alone = team.size == 1 and division.helpers == 0
    longest = 0
    while True:
        t = next_share(division, sizes.shares, longest) if team.size == 1 and not alone else 0
        if t < 0:
            break
        begun = nanoseconds()
        first, last = sizes.rows * t // sizes.shares, sizes.rows * (t + 1) // sizes.shares
        if alone:
            last = sizes.rows
        b = read_scratch(job + AT.scratch * WORD, call.memory + team.thread * room)
        tapes = read_tapes(job + AT.tapes * WORD, call.memory)
        gradients, sums = _place(sizes, first), at(like, call.gradients)
        elements, start = (_place(sizes, last - 1) + 1 - gradients) * length, gradients * length
        for i in range(elements * team.thread // team.size, elements * (team.thread + 1) // team.size):
            sums[start + i] = type(like)(0)
        barrier(team)
        begin = first
        while begin < last:
            end = _tile_end(sizes, begin)
            while alone and end < last and _tile_end(sizes, end) - begin <= sizes.widest:
                end = _tile_end(sizes, end)
            tile = Tile(begin, end - begin)
            _forward(like, task, tile, b, tapes, team)
            if call.path_s:
                if team.thread == 0:
                    _write_path(like, task, tile, b)
            else:
                _backward(like, task, tile, b, tapes, team)
                if team.thread == 0:
                    copy_to(like, tile.R, b.returns, call.returns + begin * size)
            barrier(team)
            begin = end
            if is_revoked(division, t):
                break
        if alone or team.size > 1 or not end_share(division, t):
            break
        longest = max(longest, nanoseconds() - begun)
    if team.size == 1 and division.helper == 0:
        _collect(like, task)


@part
def _share_of(sizes, row):
    """The share that a row belongs to."""
    return ((row + 1) * sizes.shares + sizes.rows - 1) // sizes.rows - 1


@part
def _tile_end(sizes, row):
    """The end of a row's tile. The tiles of a share are of equal height: the last one would otherwise be a sliver."""
    t = _share_of(sizes, row)
    first, rows = sizes.rows * t // sizes.shares, sizes.rows * (t + 1) // sizes.shares - sizes.rows * t // sizes.shares
    tiles = -(-rows // sizes.tile)
    return first + rows * (((row - first + 1) * tiles + rows - 1) // rows) // tiles


@part
def _place(sizes, row):
    """The row of `Call.gradients` that holds a row's gradient."""
    return _share_of(sizes, row) + (row // sizes.M if sizes.batched else 0)


@part
def _collect(like, task):
    """What helpers have done, for the caller: copies returns and path, and notes where gradients are."""
    sizes, call, size = task.sizes, task.call, size_of(like)
    results, d, m = integers(call.results), sizes.d, sizes.m
    for t in range(sizes.shares):
        helper = helper_of(owner_of(task.division, t))
        results[t] = call.gradients
        if helper:
            lent = read_lent(call.lent + helper * LENT * WORD)
            first, last = sizes.rows * t // sizes.shares, sizes.rows * (t + 1) // sizes.shares
            results[t] = lent.gradients
            if call.path_s:
                for j in range(sizes.H + 1):
                    at_row, count = (j * sizes.rows + first) * size, last - first
                    copy_to(like, count * d, lent.path_s + at_row * d, call.path_s + at_row * d)
                    copy_to(like, count * m, lent.path_a + at_row * m, call.path_a + at_row * m)
            else:
                copy_to(like, last - first, lent.returns + first * size, call.returns + first * size)


@glue
def _forward(like, task, tile, b, tapes, team):
    """The rollout of a tile, with the gradients of rewards and critic."""
    sizes, R, size = task.sizes, tile.R, size_of(like)
    d, H = sizes.d, sizes.H
    states, returns = at(like, b.states), at(like, b.returns)
    for r in range(R):
        source = at(like, task.call.state + (tile.begin + r) // sizes.M * d * size)
        for i in range(d):
            states[r * d + i] = source[i]
        returns[r] = type(like)(0)
    for j in range(H):
        _act(like, task, tile, j, b, tapes, team)
        _value(like, task, tile, j, b, tapes, team)
        _step(like, task, tile, j, b, tapes, team)
    _act(like, task, tile, H, b, tapes, team)
    _value(like, task, tile, H, b, tapes, team)


@glue
def _value(like, task, tile, j, b, tapes, team):
    """The term of step j with its gradients: r, at the last step Q; less the anchor. Not needed for the path."""
    if task.call.path_s:
        return
    own = task.reward.count if j < task.sizes.H else task.critics.count
    if own == 0:
        given_gradient(like, task, tile, j, b)
    elif j < task.sizes.H:
        reward_gradient(like, task, tile, j, b, tapes, team)
    else:
        critic_gradient(like, task, tile, b, tapes, team)
    if task.anchor.count:
        anchor_gradient(like, task, tile, j, b, tapes, team)


@part
def _write_path(like, task, tile, b):
    """The tile's states and actions to the call's path."""
    call, d, m, R, rows, size = task.call, task.sizes.d, task.sizes.m, tile.R, task.sizes.rows, size_of(like)
    for j in range(task.sizes.H + 1):
        to = j * rows + tile.begin
        copy_to(like, R * d, b.states + j * R * d * size, call.path_s + to * d * size)
        copy_to(like, R * m, b.actions + j * R * m * size, call.path_a + to * m * size)


@glue
def _act(like, task, tile, j, b, tapes, team):
    """a_j = π_ψ(s_j), recorded."""
    sizes, R, size = task.sizes, tile.R, size_of(like)
    d, m, calls = sizes.d, sizes.m, sizes.H + 1
    r = 0
    while r < R:
        n, rows = _segment(sizes, tile, r)
        net = network_of(task.policies, n)
        tape = tapes.policy + r * calls * net.tape * size
        inputs = b.inputs + (r * calls + j * rows) * d * size
        to, source = at(like, inputs), at(like, b.states + (j * R + r) * d * size)
        for i in range(rows * d):
            to[i] = source[i]
        first_layer(like, net, inputs, rows, tape, calls, j, team)
        record(like, net, tape, calls, j, rows, layer_of(net, 0).bias, b.actions + (j * R + r) * m * size, team)
        r += rows


@glue
def _step(like, task, tile, j, b, tapes, team):
    """s_{j+1} from s_j and a_j, recorded."""
    chain, R, size = task.chain, tile.R, size_of(like)
    if chain.members:
        record_members(like, task, tile, j, b, tapes)
    elif chain.from_actions:
        record_step(like, task, tile, j, b, tapes)
    else:
        d, m, H, K, net = chain.d, chain.m, task.sizes.H, chain.K, network_of(task.dynamics, 0)
        s, a, next_s = b.states + j * R * d * size, b.actions + j * R * m * size, b.states + (j + 1) * R * d * size
        row = chain.noises * d
        noise, tape = task.call.noise + (tile.begin * H + j) * row * size, tapes.dynamics
        record_transition(
            like, chain, net, s, a, noise, H * row, R, tape, H * K, j * K, b.x, b.constant, b.u, b.y, next_s, team
        )


@glue
def _backward(like, task, tile, b, tapes, team):
    """The cotangents of a tile back to its real states, and the parameter gradients, which are added up."""
    sizes, R, size = task.sizes, tile.R, size_of(like)
    d, m, H = sizes.d, sizes.m, sizes.H
    pulled_s, pulled_a, w, lam = at(like, b.pulled_s), at(like, b.pulled_a), at(like, b.w), at(like, b.lam)
    for i in range(R * d):
        pulled_s[i] = type(like)(0)
    for i in range(R * m):
        pulled_a[i] = type(like)(0)
    for j in range(H, -1, -1):
        direct_s, direct_a = at(like, b.values_s + j * R * d * size), at(like, b.values_a + j * R * m * size)
        for i in range(R * m):
            w[i] = direct_a[i] + pulled_a[i]
        _pull_action(like, task, tile, j, b, tapes, team)
        if j:
            for i in range(R * d):
                lam[i] += direct_s[i] + pulled_s[i]
            _pull_step(like, task, tile, j - 1, b, tapes, team)
    r = 0
    while r < R:
        n, rows = _segment(sizes, tile, r)
        net = network_of(task.policies, n)
        inputs, tape = b.inputs + r * (H + 1) * d * size, tapes.policy + r * (H + 1) * net.tape * size
        bars, gradient = tapes.bars + r * (H + 1) * net.bars * size, _gradient(like, task, tile, r)
        parameter_gradients(like, net, inputs, tape, bars, H + 1, rows, gradient, team)
        r += rows


@glue
def _pull_action(like, task, tile, j, b, tapes, team):
    """w_j -> the policy's cotangents at step j, and for j > 0 their part of λ_j."""
    sizes, R, size = task.sizes, tile.R, size_of(like)
    d, m, calls = sizes.d, sizes.m, sizes.H + 1
    r = 0
    while r < R:
        n, rows = _segment(sizes, tile, r)
        net = network_of(task.policies, n)
        tape, bars = tapes.policy + r * calls * net.tape * size, tapes.bars + r * calls * net.bars * size
        w, a = b.w + r * m * size, b.actions + (j * R + r) * m * size
        gradient = _gradient(like, task, tile, r)
        z_bar = cotangents(like, net, tape, calls, j, rows, w, a, tapes.work, bars, gradient, team)
        if j:
            input_cotangent(like, net, z_bar, rows, b.lam + r * d * size)
        r += rows


@glue
def _pull_step(like, task, tile, j, b, tapes, team):
    """λ_{j+1} -> F_sᵀ λ and F_aᵀ λ of step j."""
    chain = task.chain
    if chain.members:
        pull_members(like, task, tile, j, b, tapes)
    elif chain.from_actions:
        pull_step(like, task, tile, j, b, tapes)
    else:
        R, H, K, net, tape, work = tile.R, task.sizes.H, chain.K, network_of(task.dynamics, 0), tapes.dynamics, tapes.work
        v_s, v_a = b.pulled_s, b.pulled_a
        pull_transition(like, chain, net, R, tape, H * K, j * K, b.lam, b.mu, b.y, b.total, b.x, work, v_s, v_a, team)


@part
def _segment(sizes, tile, r):
    """The policy of the tile's row r, and how many rows from there on share it and one share's tile."""
    row, end = tile.begin + r, min(tile.begin + tile.R, _tile_end(sizes, tile.begin + r))
    if not sizes.batched:
        return 0, end - row
    n = row // sizes.M
    return n, min(end, (n + 1) * sizes.M) - row


@part
def _gradient(like, task, tile, r):
    """The address of the gradient that the tile's row r adds to."""
    place = _place(task.sizes, tile.begin + r)
    return task.call.gradients + place * network_of(task.policies, 0).gradient * size_of(like)
