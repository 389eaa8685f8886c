"""One imagined transition of a tile of rows with its tangents, or its transpose, inside compiled code.

A deterministic one-step model is a chain of one step without a latent.
"""

from typing import NamedTuple

from jacrec.kernels.cpu.base.host import exact_part, ordered_part, part
from jacrec.kernels.cpu.base.layout import layer_of
from jacrec.kernels.cpu.base.mlp import add_to, copy_columns, copy_to, cotangents, first_slot, record
from jacrec.kernels.cpu.base.products import axpy, axpy_add, dot
from jacrec.kernels.cpu.base.tangents import list_room, push
from jacrec.kernels.cpu.base.team import columns
from jacrec.kernels.cpu.base.tiles import LISTED, at, size_of


class Chain(NamedTuple):
    """World dynamics beside their networks: sizes, flags and addresses."""

    d: int
    m: int
    K: int  # network calls of a transition
    latent: int  # whether there is one, as in diffusion and flows
    difference: int  # whether the network predicts s' − s
    state_mean: int
    state_std: int
    out_mean: int
    out_std: int
    from_latent: int  # the first layer's weight by inputs, transposed: (d, w) of the latent
    from_input: int  # (d+m, w) of state and action; (d, w) for a multi-step model
    table: int  # the first layer's bias at each step
    table_stride: int
    noises: int  # rows of noise, the last of which is the base sample
    members: int  # networks of an ensemble (`ensemble`), else 0
    from_actions: int  # multi-step models (`multistep`): the first layer's weight by actions, transposed (horizon·m, w); else 0
    scaled: int  # whether outputs scale the noise
    c_u: int  # addresses of the K coefficients of (24)
    c_net: int
    sigma: int


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


@ordered_part
def decode(mean, std, x, s, difference):
    """The next state (25) for the network's standardised output x, one number each."""
    moved = mean + std * x
    return s + moved if difference else moved


@exact_part
def decode_tangent(std, dx, ds, difference):
    """The tangent of the next state."""
    moved = std * dx
    return ds + moved if difference else moved


@part
def record_transition(like, chain, net, state, action, noise, noise_stride, R, tape, J, j, x, constant, u, y, next_state, team):
    """f_θ(s, a, ε) into next_state (R, d); the K network calls are copies j … j+K−1 on the tape.

    state (R, d), action (R, m); row r's noise (noises, d) is at r·noise_stride. Scratch: x (R, d+m), constant (R, padded
    width of layer 0), u (R, d), y (R, d).
    """
    size = size_of(like)
    all_c_u, all_c_net, all_sigma = at(like, chain.c_u), at(like, chain.c_net), at(like, chain.sigma)
    d, m, K = chain.d, chain.m, chain.K
    width = layer_of(net, 0).padded
    standardise(like, R, d, m, chain.state_mean, chain.state_std, state, action, x)
    begin, end = columns(like, team, width)
    own = begin * size
    axpy(like, x, d + m, 1, R, chain.from_input + own, width, d + m, end - begin, constant + own, width)
    for r in range(R):
        row = at(like, u + r * d * size)
        if chain.latent:
            z = at(like, noise + (r * noise_stride + (chain.noises - 1) * d) * size)
            for i in range(d):
                row[i] = z[i]  # (23)
        else:
            for i in range(d):
                row[i] = type(like)(0)
    for k in range(K, 0, -1):
        call = j + k - 1
        z_1 = first_slot(like, net, tape, J, call, R)
        copy_columns(like, R, width, constant, z_1, begin, end)
        if chain.latent:
            axpy_add(like, u, d, 1, R, chain.from_latent + own, width, d, end - begin, z_1 + own, width)
        record(like, net, tape, J, call, R, chain.table + (k - 1) * chain.table_stride * size, y, team)
        c_u, c_net, sigma = all_c_u[k - 1], all_c_net[k - 1], all_sigma[k - 1]
        for r in range(R):
            latent, out = at(like, u + r * d * size), at(like, y + r * d * size)
            for i in range(d):
                latent[i] = c_u * latent[i] + c_net * out[i]  # (24)
            if sigma != 0:
                z = at(like, noise + (r * noise_stride + (k - 1) * d) * size)
                for i in range(d):
                    latent[i] += sigma * z[i]
    mean, std = at(like, chain.out_mean), at(like, chain.out_std)
    for r in range(R):
        s, latent, out = at(like, state + r * d * size), at(like, u + r * d * size), at(like, next_state + r * d * size)
        for i in range(d):
            out[i] = decode(mean[i], std[i], latent[i], s[i], chain.difference)


@part
def input_cotangents(like, chain, scale, v, lam, v_s, v_a):
    """A row's cotangents of the network's inputs (d+m) and of the next state (d) -> those of state (d) and action (m)."""
    d, m = chain.d, chain.m
    both, row, to_s, to_a = at(like, v), at(like, lam), at(like, v_s), at(like, v_a)
    for i in range(d):
        to_s[i] = both[i] / scale[i] + (row[i] if chain.difference else type(like)(0))
    for i in range(m):
        to_a[i] = both[d + i]


@part
def pull_transition(like, chain, net, R, tape, J, j, lam, mu, y_bar, total, v, work, v_s, v_a, team):
    """λ (R, d) -> v_s = F_sᵀ λ (R, d), v_a = F_aᵀ λ (R, m).

    Scratch: mu, y_bar (R, d), total (R, padded width of layer 0), v (R, d+m), work as in `mlp.cotangents`; only the
    tape and `work` are shared by the team.
    """
    size = size_of(like)
    all_c_u, all_c_net = at(like, chain.c_u), at(like, chain.c_net)
    d, m, K = chain.d, chain.m, chain.K
    width = layer_of(net, 0).padded
    std = at(like, chain.out_std)
    for r in range(R):
        row, into = at(like, lam + r * d * size), at(like, mu + r * d * size)
        for i in range(d):
            into[i] = row[i] * std[i]
    sums, cotangent, out = at(like, total), at(like, mu), at(like, y_bar)
    for i in range(R * width):
        sums[i] = type(like)(0)
    for k in range(1, K + 1):
        c_u, c_net = all_c_u[k - 1], all_c_net[k - 1]
        for i in range(R * d):
            out[i] = c_net * cotangent[i]
        z_bar = cotangents(like, net, tape, J, j + k - 1, R, y_bar, y_bar, work, type(J)(0), type(J)(0), team)
        add_to(like, R * width, z_bar, total)
        if chain.latent:
            dot(like, z_bar, width, R, chain.from_latent, width, d, width, y_bar, d)
            for i in range(R * d):
                cotangent[i] = c_u * cotangent[i] + out[i]
    dot(like, total, width, R, chain.from_input, width, d + m, width, v, d + m)
    scale = at(like, chain.state_std)
    for r in range(R):
        input_cotangents(like, chain, scale, v + r * (d + m) * size, lam + r * d * size, v_s + r * d * size, v_a + r * m * size)


@part
def push_transition(like, chain, net, state, action, noise, noise_stride, ds, da, particles, T, memory, next_state, tangents):
    """f_θ(s, a, ε) into next_state (particles, d), and F_s ds + F_a da into tangents (particles, T, d).

    state (particles, d), action (particles, m), ds (particles, T, d), da (particles, T, m); a particle's noise (noises, d)
    is at a multiple of noise_stride. `memory` has room for `push_room` numbers and is aligned for int64.
    """
    size = size_of(like)
    all_c_u, all_c_net, all_sigma = at(like, chain.c_u), at(like, chain.c_net), at(like, chain.sigma)
    d, m, K, S = chain.d, chain.m, chain.K, 1 + T
    rows, width = particles * S, layer_of(net, 0).padded
    lists = memory
    x = lists + (2 + T) * (net.widest + LISTED) * size  # `list_room`
    constant = x + rows * (d + m) * size
    u = constant + rows * width * size
    y = u + rows * d * size
    gate = y + rows * d * size
    buffers = gate + net.widest * size
    mu, sd = at(like, chain.state_mean), at(like, chain.state_std)
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
        if chain.latent:
            z, latent = at(like, noise + (p * noise_stride + (chain.noises - 1) * d) * size), at(like, u + p * S * d * size)
            for i in range(d):
                latent[i] = z[i]  # (23)
    axpy(like, x, d + m, 1, rows, chain.from_input, width, d + m, width, constant, width)
    latents, out = at(like, u), at(like, y)
    for k in range(K, 0, -1):
        copy_to(like, rows * width, constant, buffers)
        if chain.latent:
            axpy_add(like, u, d, 1, rows, chain.from_latent, width, d, width, buffers, width)
        push(like, net, particles, T, chain.table + (k - 1) * chain.table_stride * size, buffers, gate, y, lists)
        c_u, c_net, sigma = all_c_u[k - 1], all_c_net[k - 1], all_sigma[k - 1]
        for i in range(rows * d):
            latents[i] = c_u * latents[i] + c_net * out[i]  # (24) in the values, (29) and (31) in the tangents
        if sigma != 0:
            for p in range(particles):
                z, latent = at(like, noise + (p * noise_stride + (k - 1) * d) * size), at(like, u + p * S * d * size)
                for i in range(d):
                    latent[i] += sigma * z[i]
    mean, std = at(like, chain.out_mean), at(like, chain.out_std)
    for p in range(particles):
        s, value = at(like, state + p * d * size), at(like, next_state + p * d * size)
        for t in range(S):
            latent = at(like, u + (p * S + t) * d * size)
            along, tangent = at(like, ds + (p * T + t - 1) * d * size), at(like, tangents + (p * T + t - 1) * d * size)
            for i in range(d):
                if t:
                    tangent[i] = decode_tangent(std[i], latent[i], along[i], chain.difference)
                else:
                    value[i] = decode(mean[i], std[i], latent[i], s[i], chain.difference)


def push_room(d: int, m: int, first: int, widest: int, particles: int, T: int) -> int:
    """Numbers that `push_transition` needs, for a network with `first` and `widest` padded units."""
    return particles * (1 + T) * (d + m + first + 2 * d + 2 * widest) + widest + list_room(widest, T)
