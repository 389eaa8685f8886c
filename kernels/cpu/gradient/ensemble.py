"""One imagined transition of a tile of rows by a probabilistic ensemble, and its transpose.

Every row goes through the network that its noise has drawn, s' = s + mean + std ⊙ (μ_i + σ_i ⊙ z). The rows of a tile are
taken in the order of their networks, so that each network's weights are read once for all of its rows. What a step leaves for
its transpose: the activations, the order, and ∂x/∂y of the outputs that scale the noise.
"""

import math

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.layout import BIAS, FIRST, LAYERS, PADDED, TAPE
from jacrec.kernels.cpu.base.mlp import cotangents, first_slot, record
from jacrec.kernels.cpu.base.products import axpy, dot
from jacrec.kernels.cpu.base.tiles import at, integers, size_of
from jacrec.kernels.cpu.gradient.transition import (
    ACTION_DIM,
    DIFFERENCE,
    OUT_MEAN,
    OUT_STD,
    STATE_DIM,
    STATE_MEAN,
    STATE_STD,
    input_cotangents,
    standardise,
)
from jacrec.models.dynamics.ensemble import HIGHEST, LOWEST


@part
def scale_and_slope(like, y):
    """σ and dσ/dy of the output y that says how uncertain a network is: `jacrec.models.dynamics.ensemble.bounded`."""
    below = HIGHEST + _log_sigmoid(y - HIGHEST)
    log_variance = LOWEST - _log_sigmoid(LOWEST - below)
    slope = math.exp(_log_sigmoid(HIGHEST - y)) * math.exp(_log_sigmoid(below - LOWEST))
    scale = math.exp(0.5 * log_variance)
    return type(like)(scale), type(like)(0.5 * scale * slope)


@part
def _log_sigmoid(x):
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))


@part
def record_members(
    like, chain, nets, state, action, noise, noise_stride, member, member_stride, R, tape, order, x, xs, y, spread, next_state
):
    """s' into next_state (R, d), with row r's network at member + 8·r·member_stride and its noise (2, d) at r·noise_stride.

    Left for `pull_members`: the tape of R rows, order (R,) of int64 and spread (R, d), by row. Scratch: x, xs (R, d+m),
    y (R, 2d).
    """
    size, d, m, count = size_of(like), chain[STATE_DIM], chain[ACTION_DIM], nets.shape[0]
    zero, one = R * 0, R * 0 + 1
    alone = (zero, one, zero)
    standardise(like, R, d, m, chain[STATE_MEAN], chain[STATE_STD], state, action, x)
    places, members = integers(order), integers(member)
    begin = zero
    for c in range(count):
        end = begin
        for r in range(R):
            if members[r * member_stride] == c:
                places[end] = r
                source, to = at(like, x + r * (d + m) * size), at(like, xs + end * (d + m) * size)
                for i in range(d + m):
                    to[i] = source[i]
                end += 1
        rows = end - begin
        if rows:
            net, own = nets[c], tape + begin * nets[c, TAPE] * size
            width = net[LAYERS + PADDED]
            z_1 = first_slot(like, net, own, one, zero, rows)
            axpy(like, xs + begin * (d + m) * size, d + m, 1, rows, net[FIRST], width, d + m, width, z_1, width)
            record(like, net, own, one, zero, rows, net[LAYERS + BIAS], y + begin * 2 * d * size, alone)
        begin = end
    mean, std = at(like, chain[OUT_MEAN]), at(like, chain[OUT_STD])
    for p in range(R):
        r = places[p]
        out, z = at(like, y + p * 2 * d * size), at(like, noise + r * noise_stride * size)
        s, to, slope = at(like, state + r * d * size), at(like, next_state + r * d * size), at(like, spread + r * d * size)
        for i in range(d):
            scale, per_output = scale_and_slope(like, out[d + i])
            moved = mean[i] + std[i] * (out[i] + scale * z[i])
            to[i] = s[i] + moved if chain[DIFFERENCE] else moved
            slope[i] = per_output * z[i]


@part
def pull_members(like, chain, nets, member, member_stride, R, tape, order, spread, lam, y_bar, xs, work, v_s, v_a):
    """λ (R, d) -> v_s = F_sᵀ λ (R, d), v_a = F_aᵀ λ (R, m). Scratch: y_bar (R, 2d), xs (R, d+m), work of `mlp.cotangents`."""
    size, d, m, count = size_of(like), chain[STATE_DIM], chain[ACTION_DIM], nets.shape[0]
    zero, one = R * 0, R * 0 + 1
    alone = (zero, one, zero)
    places, members, std, scale = integers(order), integers(member), at(like, chain[OUT_STD]), at(like, chain[STATE_STD])
    for p in range(R):
        r = places[p]
        to, row, slope = at(like, y_bar + p * 2 * d * size), at(like, lam + r * d * size), at(like, spread + r * d * size)
        for i in range(d):
            x_bar = row[i] * std[i]
            to[i] = x_bar
            to[d + i] = x_bar * slope[i]
    begin = zero
    for c in range(count):
        end = begin
        while end < R and members[places[end] * member_stride] == c:
            end += 1
        rows = end - begin
        if rows:
            net, own = nets[c], tape + begin * nets[c, TAPE] * size
            above, width = y_bar + begin * 2 * d * size, net[LAYERS + PADDED]
            z_bar = cotangents(like, net, own, one, zero, rows, above, above, work, zero, zero, alone)
            dot(like, z_bar, width, rows, net[FIRST], width, d + m, width, xs + begin * (d + m) * size, d + m)
        begin = end
    for p in range(R):
        r = places[p]
        input_cotangents(
            like, chain, scale, xs + p * (d + m) * size, lam + r * d * size, v_s + r * d * size, v_a + r * m * size
        )
