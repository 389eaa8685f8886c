"""One imagined transition of a tile of rows by a probabilistic ensemble, and its transpose.

Every row goes through the network that its noise selects, s' = s + mean + std ⊙ (μ_i + σ_i ⊙ z). The rows of a tile are
taken in the order of their networks, so that each network's weights are read once for all of its rows. A step keeps for
its transpose the activations, the order, and ∂x/∂y of the outputs that scale the noise.
"""

import math

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.layout import layer_of, network_of
from jacrec.kernels.cpu.base.mlp import cotangents, first_slot, record
from jacrec.kernels.cpu.base.products import axpy, dot
from jacrec.kernels.cpu.base.rows import WORD
from jacrec.kernels.cpu.base.team import ALONE
from jacrec.kernels.cpu.base.tiles import at, integers, size_of
from jacrec.kernels.cpu.gradient.transition import decode, input_cotangents, standardise
from jacrec.models.dynamics.ensemble import HIGHEST, LOWEST


@part
def scale_and_slope(like, y):
    """σ and dσ/dy of the output y that predicts a network's uncertainty: `jacrec.models.dynamics.ensemble.bounded`."""
    below = HIGHEST + _log_sigmoid(y - HIGHEST)
    log_variance = LOWEST - _log_sigmoid(LOWEST - below)
    slope = math.exp(_log_sigmoid(HIGHEST - y)) * math.exp(_log_sigmoid(below - LOWEST))
    scale = math.exp(0.5 * log_variance)
    return type(like)(scale), type(like)(0.5 * scale * slope)


@part
def _log_sigmoid(x):
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))


@part
def record_members(like, task, tile, j, b, tapes):
    """s_{j+1} from s_j and a_j; `order`, `spread` and the networks' tapes are kept for `pull_members`."""
    size, chain, nets, R, d, m, H = size_of(like), task.chain, task.dynamics, tile.R, task.chain.d, task.chain.m, task.sizes.H
    state, action, next_state = b.states + j * R * d * size, b.actions + j * R * m * size, b.states + (j + 1) * R * d * size
    noise_row = chain.noises * d
    noise, spread = task.call.noise + (tile.begin * H + j) * noise_row * size, tapes.spread + j * R * d * size
    tape = tapes.dynamics + j * R * network_of(nets, 0).tape * size
    order, members = integers(tapes.order + j * R * WORD), integers(task.call.member + (tile.begin * H + j) * WORD)
    standardise(like, R, d, m, chain.state_mean, chain.state_std, state, action, b.x)
    begin = 0
    for c in range(nets.count):
        end = begin
        for r in range(R):
            if members[r * H] == c:
                order[end] = r
                source, to = at(like, b.x + r * (d + m) * size), at(like, tapes.xs + end * (d + m) * size)
                for i in range(d + m):
                    to[i] = source[i]
                end += 1
        rows = end - begin
        if rows:
            net = network_of(nets, c)
            own, width = tape + begin * net.tape * size, layer_of(net, 0).padded
            z_1 = first_slot(like, net, own, 1, 0, rows)
            axpy(like, tapes.xs + begin * (d + m) * size, d + m, 1, rows, net.first, width, d + m, width, z_1, width)
            record(like, net, own, 1, 0, rows, layer_of(net, 0).bias, b.y + begin * 2 * d * size, ALONE)
        begin = end
    mean, std = at(like, chain.out_mean), at(like, chain.out_std)
    for p in range(R):
        r = order[p]
        out, z = at(like, b.y + p * 2 * d * size), at(like, noise + r * H * noise_row * size)
        s, to, slope = at(like, state + r * d * size), at(like, next_state + r * d * size), at(like, spread + r * d * size)
        for i in range(d):
            scale, per_output = scale_and_slope(like, out[d + i])
            to[i] = decode(mean[i], std[i], out[i] + scale * z[i], s[i], chain.difference)
            slope[i] = per_output * z[i]


@part
def pull_members(like, task, tile, j, b, tapes):
    """λ_{j+1} in `lam` -> F_sᵀ λ in `pulled_s`, F_aᵀ λ in `pulled_a`."""
    size, chain, nets, R, d, m, H = size_of(like), task.chain, task.dynamics, tile.R, task.chain.d, task.chain.m, task.sizes.H
    spread, tape = tapes.spread + j * R * d * size, tapes.dynamics + j * R * network_of(nets, 0).tape * size
    order, members = integers(tapes.order + j * R * WORD), integers(task.call.member + (tile.begin * H + j) * WORD)
    std, scale = at(like, chain.out_std), at(like, chain.state_std)
    for p in range(R):
        r = order[p]
        to, row, slope = at(like, b.y + p * 2 * d * size), at(like, b.lam + r * d * size), at(like, spread + r * d * size)
        for i in range(d):
            x_bar = row[i] * std[i]
            to[i] = x_bar
            to[d + i] = x_bar * slope[i]
    begin = 0
    for c in range(nets.count):
        end = begin
        while end < R and members[order[end] * H] == c:
            end += 1
        rows = end - begin
        if rows:
            net = network_of(nets, c)
            own, y_bar, width = tape + begin * net.tape * size, b.y + begin * 2 * d * size, layer_of(net, 0).padded
            z_bar = cotangents(like, net, own, 1, 0, rows, y_bar, y_bar, tapes.work, 0, 0, ALONE)
            dot(like, z_bar, width, rows, net.first, width, d + m, width, tapes.xs + begin * (d + m) * size, d + m)
        begin = end
    for p in range(R):
        r = order[p]
        v, lam = tapes.xs + p * (d + m) * size, b.lam + r * d * size
        input_cotangents(like, chain, scale, v, lam, b.pulled_s + r * d * size, b.pulled_a + r * m * size)
