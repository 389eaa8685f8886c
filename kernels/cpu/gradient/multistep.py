"""One step of a multi-step model's imagination for a tile of rows, and its transpose: `jacrec.engine.multistep` inside a kernel.

s_{j+1} is a network's output for s_0 and the actions so far. In the first layer the actions enter as a running sum; the
transpose keeps a running sum of z̄. Steps count from 0 here.
"""

import math

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.layout import layer_of, network_of
from jacrec.kernels.cpu.base.mlp import add_to, copy_to, cotangents, first_slot, record
from jacrec.kernels.cpu.base.products import axpy, axpy_add, dot
from jacrec.kernels.cpu.base.team import ALONE
from jacrec.kernels.cpu.base.tiles import at, size_of
from jacrec.models.dynamics.multistep import LOG_SCALE

CENTRE, HALF = LOG_SCALE


@part
def record_step(like, task, tile, j, b, tapes):
    """s_{j+1} from s_0 and a_0 … a_j.

    `constant` accumulates the actions' part of the first layer from step to step. For `pull_step`, copy j of the tape is kept,
    and for a stochastic model `spread`.
    """
    size, chain, net, R, d, m = size_of(like), task.chain, network_of(task.dynamics, 0), tile.R, task.chain.d, task.chain.m
    H, width, noisy, row_of_noise = task.sizes.H, layer_of(net, 0).padded, chain.noises, chain.noises * d
    outputs = 2 * d if noisy else d
    action, next_state = b.actions + j * R * m * size, b.states + (j + 1) * R * d * size
    noise, spread = task.call.noise + (tile.begin * H + j) * row_of_noise * size, tapes.spread + j * R * d * size
    if j == 0:
        mu, sd = at(like, chain.state_mean), at(like, chain.state_std)
        for r in range(R):
            s, row = at(like, b.states + r * d * size), at(like, b.x + r * d * size)
            for i in range(d):
                row[i] = (s[i] - mu[i]) / sd[i]
        axpy(like, b.x, d, 1, R, chain.from_input, width, d, width, b.constant, width)
    axpy_add(like, action, m, 1, R, chain.from_actions + j * m * width * size, width, m, width, b.constant, width)
    copy_to(like, R * width, b.constant, first_slot(like, net, tapes.dynamics, H, j, R))
    record(like, net, tapes.dynamics, H, j, R, chain.table + j * chain.table_stride * size, b.y, ALONE)
    mean, std = at(like, chain.out_mean + j * d * size), at(like, chain.out_std + j * d * size)
    for r in range(R):
        out, s = at(like, b.y + r * outputs * size), at(like, b.states + r * d * size)
        to = at(like, next_state + r * d * size)
        if noisy:
            n, slope = at(like, noise + r * H * row_of_noise * size), at(like, spread + r * d * size)
            for i in range(d):
                t = math.tanh(out[d + i])
                scale = math.exp(CENTRE + HALF * t)
                slope[i] = type(like)(scale * HALF * (1 - t * t)) * n[i]
                to[i] = s[i] + mean[i] + std[i] * (out[i] + type(like)(scale) * n[i])
        else:
            for i in range(d):
                to[i] = s[i] + mean[i] + std[i] * out[i]


@part
def pull_step(like, task, tile, j, b, tapes):
    """λ_{j+1} in `lam` -> Σ_{k≥j} (∂s_{k+1}/∂a_j)ᵀ λ_{k+1} in `pulled_a`, and 0 in `pulled_s`: no later state depends on s_j.

    For j = H−1 … 0 in turn; `total` holds the running sum of z̄.
    """
    size, chain, net, R, d, m = size_of(like), task.chain, network_of(task.dynamics, 0), tile.R, task.chain.d, task.chain.m
    H, width, noisy = task.sizes.H, layer_of(net, 0).padded, chain.noises
    outputs = 2 * d if noisy else d
    std = at(like, chain.out_std + j * d * size)
    for r in range(R):
        row, to = at(like, b.lam + r * d * size), at(like, b.y + r * outputs * size)
        for i in range(d):
            to[i] = row[i] * std[i]
        if noisy:
            slope = at(like, tapes.spread + (j * R + r) * d * size)
            for i in range(d):
                to[d + i] = to[i] * slope[i]
    z_bar = cotangents(like, net, tapes.dynamics, H, j, R, b.y, b.y, tapes.work, 0, 0, ALONE)
    if j == H - 1:
        copy_to(like, R * width, z_bar, b.total)
    else:
        add_to(like, R * width, z_bar, b.total)
    dot(like, b.total, width, R, chain.from_actions + j * m * width * size, width, m, width, b.pulled_a, m)
    pulled_s = at(like, b.pulled_s)
    for i in range(R * d):
        pulled_s[i] = type(like)(0)
