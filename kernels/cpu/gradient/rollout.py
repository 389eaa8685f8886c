"""The adjoint form of Theorem 4.1 for a run of particles, from the real state to the parameter gradient, in one call.

A tile of rows goes through all H steps and back before the next one starts: what a row needs is small, stays in the
nearest caches, and does not grow with the number of particles.
"""

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.layout import layer_of, network_of
from jacrec.kernels.cpu.base.mlp import copy_to, cotangents, parameter_gradients, record
from jacrec.kernels.cpu.base.rows import WORD
from jacrec.kernels.cpu.base.shares import end_share, is_revoked
from jacrec.kernels.cpu.base.tangents import row_squares
from jacrec.kernels.cpu.base.team import ALONE, Team, barrier, join_team
from jacrec.kernels.cpu.base.tiles import at, size_of
from jacrec.kernels.cpu.base.waiting import nanoseconds
from jacrec.kernels.cpu.gradient.ensemble import pull_members, record_members
from jacrec.kernels.cpu.gradient.job import ARRIVALS, AT, TEAM_SIZE, read_scratch, read_tapes, task_of, with_turned
from jacrec.kernels.cpu.gradient.multistep import pull_step, record_step
from jacrec.kernels.cpu.gradient.tiling import clear_gradients, collect, gradient_of, next_tile, segment, take_share
from jacrec.kernels.cpu.gradient.transition import pull_transition, record_transition
from jacrec.kernels.cpu.gradient.values import (
    anchor_gradient,
    critic_gradient,
    first_layer,
    given_gradient,
    input_cotangent,
    reward_gradient,
    terminal_action,
    terminal_gradient,
)


@part
def rollout_gradient(like, job):
    """L of (3) for every row, and Σ w_i Π_ψ(i) of (22): takes shares of the job until none is left.

    A share is a run of rows. Its gradients are summed in rows of `Call.gradients` that no other share writes: policy n of
    share t in row n + t (n = 0 for all where the policy is shared). A helper has a row of its own, with its own memory.
    """
    task = task_of(job)
    sizes, call, division, size = task.sizes, task.call, task.division, size_of(like)
    team = ALONE
    if sizes.team > 1:
        # a team has one share, which its threads work on side by side
        common = division.owners if division.helper else job
        members = join_team(division.helper, sizes.team, common + ARRIVALS * WORD, common + TEAM_SIZE * WORD)
        if members == 0:
            return
        team = Team(division.helper, members, common + AT.flags * WORD)
    b = read_scratch(job + AT.scratch * WORD, call.memory + team.thread * call.memory_length * size)
    tapes = read_tapes(job + AT.tapes * WORD, call.memory)
    longest = 0
    while True:
        share = take_share(task, team, longest)
        if share.number < 0:
            break
        if longest == 0:
            task = with_turned(like, task, job)
        clear_gradients(like, task, share, team)
        barrier(team)
        begin = share.first
        while begin < share.last:
            tile = next_tile(sizes, share, begin)
            _forward(like, task, tile, b, tapes, team)
            if call.path_s and team.thread == 0:
                write_path(like, task, tile, b)
            if call.w or not call.path_s:
                _backward(like, task, tile, b, tapes, team)
                if team.thread == 0:
                    copy_to(like, tile.R, b.returns, call.returns + begin * size)
            barrier(team)
            begin += tile.R
            if team.size == 1 and is_revoked(division, share.number):
                break
        if share.only or not end_share(division, share.number):
            break
        longest = max(longest, nanoseconds() - share.begun)
    collect(like, task, team)


@part
def _forward(like, task, tile, b, tapes, team):
    """The rollout of a tile, with the gradients of rewards and critic."""
    H = task.sizes.H
    begin_tile(like, task, tile, b)
    for j in range(H):
        act(like, task, tile, j, b, tapes, team)
        add_term(like, task, tile, j, b, tapes, j > 0, team)
        _step(like, task, tile, j, b, tapes, team)
    if task.sizes.acts > H:
        act(like, task, tile, H, b, tapes, team)
    else:
        terminal_action(like, task, tile, b, tapes, team)
    add_term(like, task, tile, H, b, tapes, H > 0, team)


@part
def begin_tile(like, task, tile, b):
    """The real states of a tile, and its returns of 0."""
    d, size = task.sizes.d, size_of(like)
    states, returns = at(like, b.states), at(like, b.returns)
    for r in range(tile.R):
        source = at(like, task.call.state + (tile.begin + r) // task.sizes.M * d * size)
        for i in range(d):
            states[r * d + i] = source[i]
        returns[r] = type(like)(0)


@part
def add_term(like, task, tile, j, b, tapes, by_state, team):
    """The term of step j with its gradients: r, at the last step Q; less the penalty. Not needed for the path.

    by_state: whether the gradient by the state is asked for; it may be given in any case.
    """
    if task.call.path_s and not task.call.w:
        return
    own = task.reward.count if j < task.sizes.H else task.critics.count
    if own == 0:
        given_gradient(like, task, tile, j, b)
    elif j < task.sizes.H:
        reward_gradient(like, task, tile, j, b, tapes, team)
    else:
        critic_gradient(like, task, tile, b, tapes, team)
    if j == task.sizes.acts:
        terminal_gradient(like, task, tile, b, tapes, team)
    elif task.anchor.count and at(like, task.constants.penalties)[0] != 0:
        anchor_gradient(like, task, tile, j, b, tapes, by_state, team)


@part
def write_path(like, task, tile, b):
    """The tile's states and actions to the call's path."""
    call, d, m, R, rows, size = task.call, task.sizes.d, task.sizes.m, tile.R, task.sizes.rows, size_of(like)
    for j in range(task.sizes.H + 1):
        to = j * rows + tile.begin
        copy_to(like, R * d, b.states + j * R * d * size, call.path_s + to * d * size)
        copy_to(like, R * m, b.actions + j * R * m * size, call.path_a + to * m * size)


@part
def act(like, task, tile, j, b, tapes, team):
    """a_j = π_ψ(s_j), recorded."""
    sizes, R, size = task.sizes, tile.R, size_of(like)
    d, m, calls = sizes.d, sizes.m, sizes.acts
    r = 0
    while r < R:
        n, rows = segment(sizes, tile, r)
        net = network_of(task.policies, n)
        tape = tapes.policy + r * calls * net.tape * size
        inputs = b.inputs + (r * calls + j * rows) * d * size
        to, source = at(like, inputs), at(like, b.states + (j * R + r) * d * size)
        for i in range(rows * d):
            to[i] = source[i]
        first_layer(like, net, inputs, rows, tape, calls, j, team)
        record(like, net, tape, calls, j, rows, layer_of(net, 0).bias, b.actions + (j * R + r) * m * size, team)
        r += rows


@part
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


@part
def _backward(like, task, tile, b, tapes, team):
    """The cotangents of a tile back to its real states, and the parameter gradients, which are added up."""
    sizes, R, size = task.sizes, tile.R, size_of(like)
    d, m, H, calls = sizes.d, sizes.m, sizes.H, sizes.acts
    pulled_s, pulled_a, w, lam = at(like, b.pulled_s), at(like, b.pulled_a), at(like, b.w), at(like, b.lam)
    for i in range(R * d):
        pulled_s[i] = type(like)(0)
    for i in range(R * m):
        pulled_a[i] = type(like)(0)
    for j in range(H, -1, -1):
        direct_s, direct_a = at(like, b.values_s + j * R * d * size), at(like, b.values_a + j * R * m * size)
        for i in range(R * m):
            w[i] = direct_a[i] + pulled_a[i]
        if j < calls:
            _pull_action(like, task, tile, j, b, tapes, team)
        else:
            for i in range(R * d):
                lam[i] = type(like)(0)
            for i in range(R * m):
                w[i] = type(like)(0)
        if task.call.w:
            copy_to(like, R * m, b.w, task.call.w + (j * sizes.rows + tile.begin) * m * size)
        if j:
            for i in range(R * d):
                lam[i] += direct_s[i] + pulled_s[i]
            _pull_step(like, task, tile, j - 1, b, tapes, team)
    r = 0
    while r < R:
        n, rows = segment(sizes, tile, r)
        net = network_of(task.policies, n)
        inputs, tape = b.inputs + r * calls * d * size, tapes.policy + r * calls * net.tape * size
        bars, gradient = tapes.bars + r * calls * net.bars * size, gradient_of(like, task, tile, r)
        parameter_gradients(like, net, inputs, tape, bars, calls, rows, gradient, team)
        if task.call.squares_of:
            to = task.call.squares_of + (tile.begin + r) * size
            row_squares(like, net, inputs, tape, bars, calls, rows, task.call.counted, to)
        r += rows


@part
def _pull_action(like, task, tile, j, b, tapes, team):
    """w_j -> the policy's cotangents at step j, and for j > 0 their part of λ_j."""
    sizes, R, size = task.sizes, tile.R, size_of(like)
    d, m, calls = sizes.d, sizes.m, sizes.acts
    r = 0
    while r < R:
        n, rows = segment(sizes, tile, r)
        net = network_of(task.policies, n)
        tape, bars = tapes.policy + r * calls * net.tape * size, tapes.bars + r * calls * net.bars * size
        w, a = b.w + r * m * size, b.actions + (j * R + r) * m * size
        gradient = gradient_of(like, task, tile, r)
        z_bar = cotangents(like, net, tape, calls, j, rows, w, a, tapes.work, bars, gradient, team)
        if j:
            input_cotangent(like, net, z_bar, rows, b.lam + r * d * size)
        r += rows


@part
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
