"""One imagined transition of a tile of rows with its tangents, or its transpose: the insides of the kernels.

A deterministic one-step model is a chain of one step without a latent. `chain` is a row of int64: sizes and addresses;
`steps` holds c_u, c_net and σ of the K reverse steps, (3, K).
"""

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.layout import LAYERS, PADDED, WIDEST
from jacrec.kernels.cpu.base.mlp import add_to, copy_columns, copy_to, cotangents, first_slot, push, record
from jacrec.kernels.cpu.base.products import axpy, axpy_add, dot
from jacrec.kernels.cpu.base.team import columns
from jacrec.kernels.cpu.base.tiles import at, size_of

STATE_DIM, ACTION_DIM, STEPS, HAS_LATENT, DIFFERENCE = range(5)
STATE_MEAN, STATE_STD, OUT_MEAN, OUT_STD = range(5, 9)
FROM_LATENT, FROM_INPUT, TABLE, TABLE_STRIDE, NOISES = range(9, 14)
"""the first layer's weight transposed, by inputs: (d, w) of the latent, (d+m, w) of state and action; a bias for each step;
rows of noise, the last of which is the base sample"""
MEMBERS, FROM_ACTIONS, SCALED = range(14, 17)
"""networks of an ensemble (`kernels.cpu.ensemble`), else 0; of a multi-step model (`kernels.cpu.multistep`) the first layer's
weight by all actions, transposed (horizon·m, w), else 0; whether outputs scale the noise"""
CHAIN = 17


@part
def standardise(like, R, d, m, mean, std, state, action, x):
    """x (R, d+m) = [(s − mean) / std, a]."""
    size = size_of(like)
    mu, sd = at(like, mean), at(like, std)
    for r in range(R):
        s, a, row = at(like, state + r * d * size), at(like, action + r * m * size), at(like, x + r * (d + m) * size)
        for i in range(d):
            row[i] = (s[i] - mu[i]) / sd[i]
        for i in range(m):
            row[d + i] = a[i]


@part
def record_transition(
    like, chain, steps, net, state, action, noise, noise_stride, R, tape, J, j, x, constant, u, y, next_state, crew
):
    """f_θ(s, a, ε) into next_state (R, d); the K denoiser calls stand on the tape as copies j … j+K−1.

    state (R, d), action (R, m); row r's noise (NOISES, d) is at r·noise_stride. Scratch: x (R, d+m), constant (R, padded
    width of layer 0), u (R, d), y (R, d).
    """
    size = size_of(like)
    d, m, K = chain[STATE_DIM], chain[ACTION_DIM], chain[STEPS]
    width = net[LAYERS + PADDED]
    standardise(like, R, d, m, chain[STATE_MEAN], chain[STATE_STD], state, action, x)
    begin, end = columns(like, crew, width)
    own = begin * size
    axpy(like, x, d + m, 1, R, chain[FROM_INPUT] + own, width, d + m, end - begin, constant + own, width)
    for r in range(R):
        row = at(like, u + r * d * size)
        if chain[HAS_LATENT]:
            z = at(like, noise + (r * noise_stride + (chain[NOISES] - 1) * d) * size)
            for i in range(d):
                row[i] = z[i]  # (23)
        else:
            for i in range(d):
                row[i] = type(like)(0)
    for k in range(K, 0, -1):
        call = j + k - 1
        z_1 = first_slot(like, net, tape, J, call, R)
        copy_columns(like, R, width, constant, z_1, begin, end)
        if chain[HAS_LATENT]:
            axpy_add(like, u, d, 1, R, chain[FROM_LATENT] + own, width, d, end - begin, z_1 + own, width)
        record(like, net, tape, J, call, R, chain[TABLE] + (k - 1) * chain[TABLE_STRIDE] * size, y, crew)
        c_u, c_net, sigma = steps[0, k - 1], steps[1, k - 1], steps[2, k - 1]
        for r in range(R):
            latent, out = at(like, u + r * d * size), at(like, y + r * d * size)
            for i in range(d):
                latent[i] = c_u * latent[i] + c_net * out[i]  # (24)
            if sigma != 0:
                z = at(like, noise + (r * noise_stride + (k - 1) * d) * size)
                for i in range(d):
                    latent[i] += sigma * z[i]
    mean, std = at(like, chain[OUT_MEAN]), at(like, chain[OUT_STD])
    for r in range(R):
        s, latent, out = at(like, state + r * d * size), at(like, u + r * d * size), at(like, next_state + r * d * size)
        for i in range(d):
            moved = mean[i] + std[i] * latent[i]
            out[i] = s[i] + moved if chain[DIFFERENCE] else moved  # (25)


@part
def input_cotangents(like, chain, scale, v, lam, v_s, v_a):
    """A row's cotangents of the network's inputs (d+m) and of the next state (d) -> those of state (d) and action (m)."""
    d, m = chain[STATE_DIM], chain[ACTION_DIM]
    both, row, to_s, to_a = at(like, v), at(like, lam), at(like, v_s), at(like, v_a)
    for i in range(d):
        to_s[i] = both[i] / scale[i] + (row[i] if chain[DIFFERENCE] else type(like)(0))
    for i in range(m):
        to_a[i] = both[d + i]


@part
def pull_transition(like, chain, steps, net, R, tape, J, j, lam, mu, y_bar, total, v, work, v_s, v_a, crew):
    """λ (R, d) -> v_s = F_sᵀ λ (R, d), v_a = F_aᵀ λ (R, m).

    Scratch: mu, y_bar (R, d), total (R, padded width of layer 0), v (R, d+m), work as `mlp.cotangents` needs it; only the
    tape and `work` are the whole crew's.
    """
    size = size_of(like)
    d, m, K = chain[STATE_DIM], chain[ACTION_DIM], chain[STEPS]
    width = net[LAYERS + PADDED]
    std = at(like, chain[OUT_STD])
    for r in range(R):
        row, into = at(like, lam + r * d * size), at(like, mu + r * d * size)
        for i in range(d):
            into[i] = row[i] * std[i]
    sums, cotangent, out = at(like, total), at(like, mu), at(like, y_bar)
    for i in range(R * width):
        sums[i] = type(like)(0)
    for k in range(1, K + 1):
        c_u, c_net = steps[0, k - 1], steps[1, k - 1]
        for i in range(R * d):
            out[i] = c_net * cotangent[i]
        z_bar = cotangents(like, net, tape, J, j + k - 1, R, y_bar, y_bar, work, type(J)(0), type(J)(0), crew)
        add_to(like, R * width, z_bar, total)
        if chain[HAS_LATENT]:
            dot(like, z_bar, width, R, chain[FROM_LATENT], width, d, width, y_bar, d)
            for i in range(R * d):
                cotangent[i] = c_u * cotangent[i] + out[i]
    dot(like, total, width, R, chain[FROM_INPUT], width, d + m, width, v, d + m)
    scale = at(like, chain[STATE_STD])
    for r in range(R):
        input_cotangents(like, chain, scale, v + r * (d + m) * size, lam + r * d * size, v_s + r * d * size, v_a + r * m * size)


@part
def push_transition(like, chain, steps, net, state, action, noise, ds, da, particles, T, memory, next_state, tangents):
    """f_θ(s, a, ε) into next_state (particles, d), and F_s ds + F_a da into tangents (particles, T, d).

    state (particles, d), action (particles, m), noise (particles, NOISES, d), ds (particles, T, d), da (particles, T, m);
    `memory` has room for `push_room` numbers.
    """
    size = size_of(like)
    d, m, K, S = chain[STATE_DIM], chain[ACTION_DIM], chain[STEPS], 1 + T
    rows, width, noise_row = particles * S, net[LAYERS + PADDED], chain[NOISES] * d
    x = memory
    constant = x + rows * (d + m) * size
    u = constant + rows * width * size
    y = u + rows * d * size
    gate = y + rows * d * size
    buffers = gate + net[WIDEST] * size
    mu, sd = at(like, chain[STATE_MEAN]), at(like, chain[STATE_STD])
    for p in range(particles):
        s, a = at(like, state + p * d * size), at(like, action + p * m * size)
        for t in range(S):
            row, latent = at(like, x + (p * S + t) * (d + m) * size), at(like, u + (p * S + t) * d * size)
            along_s, along_a = at(like, ds + (p * T + t - 1) * d * size), at(like, da + (p * T + t - 1) * m * size)
            for i in range(d):
                row[i] = along_s[i] / sd[i] if t else (s[i] - mu[i]) / sd[i]
                latent[i] = type(like)(0)  # (27)
            for i in range(m):
                row[d + i] = along_a[i] if t else a[i]
        if chain[HAS_LATENT]:
            z, latent = at(like, noise + (p * noise_row + (chain[NOISES] - 1) * d) * size), at(like, u + p * S * d * size)
            for i in range(d):
                latent[i] = z[i]  # (23)
    axpy(like, x, d + m, 1, rows, chain[FROM_INPUT], width, d + m, width, constant, width)
    latents, out = at(like, u), at(like, y)
    for k in range(K, 0, -1):
        copy_to(like, rows * width, constant, buffers)
        if chain[HAS_LATENT]:
            axpy_add(like, u, d, 1, rows, chain[FROM_LATENT], width, d, width, buffers, width)
        push(like, net, particles, T, chain[TABLE] + (k - 1) * chain[TABLE_STRIDE] * size, buffers, gate, y)
        c_u, c_net, sigma = steps[0, k - 1], steps[1, k - 1], steps[2, k - 1]
        for i in range(rows * d):
            latents[i] = c_u * latents[i] + c_net * out[i]  # (24) in the values, (29) and (31) in the tangents
        if sigma != 0:
            for p in range(particles):
                z, latent = at(like, noise + (p * noise_row + (k - 1) * d) * size), at(like, u + p * S * d * size)
                for i in range(d):
                    latent[i] += sigma * z[i]
    mean, std = at(like, chain[OUT_MEAN]), at(like, chain[OUT_STD])
    for p in range(particles):
        s, value = at(like, state + p * d * size), at(like, next_state + p * d * size)
        for t in range(S):
            latent = at(like, u + (p * S + t) * d * size)
            along, tangent = at(like, ds + (p * T + t - 1) * d * size), at(like, tangents + (p * T + t - 1) * d * size)
            for i in range(d):
                if t:
                    tangent[i] = std[i] * latent[i] + (along[i] if chain[DIFFERENCE] else type(like)(0))
                else:
                    value[i] = mean[i] + std[i] * latent[i] + (s[i] if chain[DIFFERENCE] else type(like)(0))  # (25)


@part
def push_room(chain, net, particles, T):
    """Numbers that `push_transition` needs."""
    rows, d, m = particles * (1 + T), chain[STATE_DIM], chain[ACTION_DIM]
    return rows * (d + m + net[LAYERS + PADDED] + 2 * d + 2 * net[WIDEST]) + net[WIDEST]
