"""One step of a multi-step model's imagination for a tile of rows, and its transpose: `jacrec.engine.multistep` inside a kernel.

s_j+1 is a network's answer to s_0 and the actions so far. In the first layer these are a running sum, which a row carries along
forwards; backwards it carries the running sum of z̄, of which every action takes its share. Steps count from 0 here.
"""

import math

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.layout import LAYERS, PADDED
from jacrec.kernels.cpu.base.mlp import add_to, copy_to, cotangents, first_slot, record
from jacrec.kernels.cpu.base.products import axpy, axpy_add, dot
from jacrec.kernels.cpu.base.tiles import at, size_of
from jacrec.kernels.cpu.gradient.transition import (
    ACTION_DIM,
    FROM_ACTIONS,
    FROM_INPUT,
    NOISES,
    OUT_MEAN,
    OUT_STD,
    STATE_DIM,
    STATE_MEAN,
    STATE_STD,
    TABLE,
    TABLE_STRIDE,
)
from jacrec.models.dynamics.multistep import LOG_SCALE

CENTRE, HALF = LOG_SCALE


@part
def record_step(like, chain, net, j, first, action, noise, noise_stride, R, tape, J, prefix, x, y, spread, next_state):
    """s_{j+1} into next_state (R, d), from s_0 at first (R, d) and a_j (R, m); row r's n_{j+1} (d,) at r·noise_stride.

    prefix (R, padded width of layer 0) goes on from step to step. Left for `pull_step`: copy j of the tape, and where the model
    is stochastic spread (R, d). Scratch: x (R, d), y (R, OUT).
    """
    size, d, m, width = size_of(like), chain[STATE_DIM], chain[ACTION_DIM], net[LAYERS + PADDED]
    alone, noisy = (R * 0, R * 0 + 1, R * 0), chain[NOISES]
    outputs = 2 * d if noisy else d
    if j == 0:
        mu, sd = at(like, chain[STATE_MEAN]), at(like, chain[STATE_STD])
        for r in range(R):
            s, row = at(like, first + r * d * size), at(like, x + r * d * size)
            for i in range(d):
                row[i] = (s[i] - mu[i]) / sd[i]
        axpy(like, x, d, 1, R, chain[FROM_INPUT], width, d, width, prefix, width)
    axpy_add(like, action, m, 1, R, chain[FROM_ACTIONS] + j * m * width * size, width, m, width, prefix, width)
    copy_to(like, R * width, prefix, first_slot(like, net, tape, J, j, R))
    record(like, net, tape, J, j, R, chain[TABLE] + j * chain[TABLE_STRIDE] * size, y, alone)
    mean, std = at(like, chain[OUT_MEAN] + j * d * size), at(like, chain[OUT_STD] + j * d * size)
    for r in range(R):
        out, s = at(like, y + r * outputs * size), at(like, first + r * d * size)
        to = at(like, next_state + r * d * size)
        if noisy:
            n, slope = at(like, noise + r * noise_stride * size), at(like, spread + r * d * size)
            for i in range(d):
                t = math.tanh(out[d + i])
                scale = math.exp(CENTRE + HALF * t)
                slope[i] = type(like)(scale * HALF * (1 - t * t)) * n[i]
                to[i] = s[i] + mean[i] + std[i] * (out[i] + type(like)(scale) * n[i])
        else:
            for i in range(d):
                to[i] = s[i] + mean[i] + std[i] * out[i]


@part
def pull_step(like, chain, net, j, R, tape, J, lam, spread, y_bar, total, work, v_s, v_a):
    """λ_{j+1} (R, d) -> v_a = Σ_{k≥j} (∂s_{k+1}/∂a_j)ᵀ λ_{k+1} (R, m); v_s = 0: s_j has no part in what comes after it.

    For j = J−1 … 0 in turn: total (R, padded width of layer 0) is the running sum. Scratch: y_bar (R, OUT), work as of
    `mlp.cotangents`.
    """
    size, d, m, width = size_of(like), chain[STATE_DIM], chain[ACTION_DIM], net[LAYERS + PADDED]
    alone, noisy, zero = (R * 0, R * 0 + 1, R * 0), chain[NOISES], R * 0
    outputs = 2 * d if noisy else d
    std = at(like, chain[OUT_STD] + j * d * size)
    for r in range(R):
        row, to = at(like, lam + r * d * size), at(like, y_bar + r * outputs * size)
        for i in range(d):
            to[i] = row[i] * std[i]
        if noisy:
            slope = at(like, spread + r * d * size)
            for i in range(d):
                to[d + i] = to[i] * slope[i]
    z_bar = cotangents(like, net, tape, J, j, R, y_bar, y_bar, work, zero, zero, alone)
    if j == J - 1:
        copy_to(like, R * width, z_bar, total)
    else:
        add_to(like, R * width, z_bar, total)
    dot(like, total, width, R, chain[FROM_ACTIONS] + j * m * width * size, width, m, width, v_a, m)
    nothing = at(like, v_s)
    for i in range(R * d):
        nothing[i] = type(like)(0)
