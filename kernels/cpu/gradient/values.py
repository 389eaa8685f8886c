"""Reward and critic with their gradients for a tile of rows: `jacrec.engine.jacobians.values` inside compiled code."""

from typing import NamedTuple

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.layout import layer_of, network_of
from jacrec.kernels.cpu.base.mlp import cotangents, first_slot, record
from jacrec.kernels.cpu.base.products import axpy, dot
from jacrec.kernels.cpu.base.team import columns
from jacrec.kernels.cpu.base.tiles import at, size_of
from jacrec.kernels.cpu.gradient.transition import standardise


class Scales(NamedTuple):
    """Addresses of the reward model's scales."""

    state_mean: int
    state_std: int
    reward_mean: int
    reward_std: int


@part
def first_layer(like, net, x, R, tape, J, j, team):
    """The products of a network's first layer, from inputs x (R, inputs), onto the tape; the thread's share of their columns."""
    width, size = layer_of(net, 0).padded, size_of(like)
    begin, end = columns(like, team, width)
    z_1 = first_slot(like, net, tape, J, j, R) + begin * size
    axpy(like, x, net.inputs, 1, R, net.first + begin * size, width, net.inputs, end - begin, z_1, width)


@part
def input_cotangent(like, net, z_bar, R, x_bar):
    """z̄_1 (R, padded width) -> x̄ (R, inputs)."""
    width = layer_of(net, 0).padded
    dot(like, z_bar, width, R, net.first, width, net.inputs, width, x_bar, net.inputs)


@part
def reward_gradient(like, task, tile, j, b, tapes, team):
    """Adds γ^j r to the returns; writes the weighted r_s and r_a of step j."""
    size, net, scales = size_of(like), network_of(task.reward, 0), task.scales
    R, d, m = tile.R, task.sizes.d, task.sizes.m
    state, action = b.states + j * R * d * size, b.actions + j * R * m * size
    discount, weight = at(like, task.constants.discounts)[j], at(like, task.constants.weights)[j]
    standardise(like, R, d, m, scales.state_mean, scales.state_std, state, action, b.x)
    first_layer(like, net, b.x, R, tapes.reward, 1, 0, team)
    record(like, net, tapes.reward, 1, 0, R, layer_of(net, 0).bias, b.r, team)
    mean, std = at(like, scales.reward_mean)[0], at(like, scales.reward_std)[0]
    value, total = at(like, b.r), at(like, b.returns)
    for r in range(R):
        total[r] += discount * (mean + std * value[r])
        value[r] = weight * std
    z_bar = cotangents(like, net, tapes.reward, 1, 0, R, b.r, b.r, tapes.work, 0, 0, team)
    input_cotangent(like, net, z_bar, R, b.x)
    scale = at(like, scales.state_std)
    for r in range(R):
        both = at(like, b.x + r * (d + m) * size)
        to_s, to_a = at(like, b.values_s + (j * R + r) * d * size), at(like, b.values_a + (j * R + r) * m * size)
        for i in range(d):
            to_s[i] = both[i] / scale[i]
        for i in range(m):
            to_a[i] = both[d + i]


@part
def critic_gradient(like, task, tile, b, tapes, team):
    """Adds γ^H min_i Q_i to the returns; writes the weighted Q_s and Q_a. Where critics tie, the mean of their gradients."""
    size, nets, critics = size_of(like), task.critics, task.critics.count
    R, d, m, H = tile.R, task.sizes.d, task.sizes.m, task.sizes.H
    states, actions = b.states + H * R * d * size, b.actions + H * R * m * size
    discount, weight = at(like, task.constants.discounts)[H], at(like, task.constants.weights)[H]
    for r in range(R):
        s, a, row = at(like, states + r * d * size), at(like, actions + r * m * size), at(like, b.x + r * (d + m) * size)
        for i in range(d):
            row[i] = s[i]
        for i in range(m):
            row[d + i] = a[i]
    for c in range(critics):
        net = network_of(nets, c)
        tape = tapes.critic + c * R * net.tape * size
        first_layer(like, net, b.x, R, tape, 1, 0, team)
        record(like, net, tape, 1, 0, R, layer_of(net, 0).bias, b.q + c * R * size, team)
    value, total = at(like, b.q), at(like, b.returns)
    for r in range(R):
        least = value[r]
        for c in range(1, critics):
            other = value[c * R + r]
            # not (other >= least): NaN propagates, as in torch.amin
            if not (other >= least) and least == least:
                least = other
        total[r] += discount * least
        ties = type(like)(0)
        for c in range(critics):
            ties += type(like)(1) if value[c * R + r] == least else type(like)(0)
        for c in range(critics):
            share = type(like)(1) / ties if value[c * R + r] == least else type(like)(0)
            # if the least is NaN the shares are 0/0, as in the plain form
            value[c * R + r] = weight * (share if ties > 0 else least)
    for c in range(critics):
        net = network_of(nets, c)
        tape = tapes.critic + c * R * net.tape * size
        z_bar = cotangents(like, net, tape, 1, 0, R, b.q + c * R * size, b.q, tapes.work, 0, 0, team)
        input_cotangent(like, net, z_bar, R, b.x_bar)
        for r in range(R):
            both = at(like, b.x_bar + r * (d + m) * size)
            to_s, to_a = at(like, b.values_s + (H * R + r) * d * size), at(like, b.values_a + (H * R + r) * m * size)
            for i in range(d):
                to_s[i] = both[i] + (to_s[i] if c else type(like)(0))
            for i in range(m):
                to_a[i] = both[d + i] + (to_a[i] if c else type(like)(0))


@part
def given_gradient(like, task, tile, j, b):
    """Adds γ^j times the call's terms of step j to the returns; writes their weighted gradients."""
    call, size, R, d, m = task.call, size_of(like), tile.R, task.sizes.d, task.sizes.m
    first = j * task.sizes.rows + tile.begin
    discount, weight = at(like, task.constants.discounts)[j], at(like, task.constants.weights)[j]
    total, term = at(like, b.returns), at(like, call.terms + first * size)
    for r in range(R):
        total[r] += discount * term[r]
    to, by = at(like, b.values_s + j * R * d * size), at(like, call.terms_s + first * d * size)
    for i in range(R * d):
        to[i] = weight * by[i]
    to, by = at(like, b.values_a + j * R * m * size), at(like, call.terms_a + first * m * size)
    for i in range(R * m):
        to[i] = weight * by[i]


@part
def anchor_gradient(like, task, tile, j, b, tapes, by_state, team):
    """Subtracts β γ^j ‖a − π₀(s)‖² from the returns, and its gradients from the weighted ones of step j.

    by_state: whether that by the state is asked for.
    """
    size, net, R, d, m = size_of(like), network_of(task.anchor, 0), tile.R, task.sizes.d, task.sizes.m
    penalty = at(like, task.constants.penalties)[j]
    share = at(like, task.constants.weights)[0]  # a row's, of the mean: the weights are γ^j times it
    states, actions = b.states + j * R * d * size, b.actions + j * R * m * size
    first_layer(like, net, states, R, tapes.anchor, 1, 0, team)
    record(like, net, tapes.anchor, 1, 0, R, layer_of(net, 0).bias, b.base, team)
    total = at(like, b.returns)
    for r in range(R):
        a, base = at(like, actions + r * m * size), at(like, b.base + r * m * size)
        to_a, square = at(like, b.values_a + (j * R + r) * m * size), type(like)(0)
        for i in range(m):
            gap = a[i] - base[i]
            square += gap * gap
            pull = 2 * penalty * share * gap
            to_a[i] -= pull
            # π₀ ends in tanh, whose slope is applied here
            base[i] = pull * (1 - base[i] * base[i])
        total[r] -= penalty * square
    if by_state:
        _add_base_pull(like, task, tile, j, b, tapes, team)


@part
def terminal_action(like, task, tile, b, tapes, team):
    """a_H = π₀(s_H), recorded."""
    size, net, R, d, m, H = size_of(like), network_of(task.anchor, 0), tile.R, task.sizes.d, task.sizes.m, task.sizes.H
    first_layer(like, net, b.states + H * R * d * size, R, tapes.anchor, 1, 0, team)
    record(like, net, tapes.anchor, 1, 0, R, layer_of(net, 0).bias, b.actions + H * R * m * size, team)


@part
def terminal_gradient(like, task, tile, b, tapes, team):
    """Adds Π₀ᵀ Q_a, of a_H = π₀(s_H), to the weighted Q_s; the gradient by the action of π_ψ becomes 0."""
    size, R, m, H = size_of(like), tile.R, task.sizes.m, task.sizes.H
    action, by_action, base = at(like, b.actions + H * R * m * size), at(like, b.values_a + H * R * m * size), at(like, b.base)
    for i in range(R * m):
        base[i] = by_action[i] * (1 - action[i] * action[i])
        by_action[i] = type(like)(0)
    _add_base_pull(like, task, tile, H, b, tapes, team)


@part
def _add_base_pull(like, task, tile, j, b, tapes, team):
    """Adds to the weighted gradients by state of step j what π₀ pulls back from `b.base`, cotangents before its tanh."""
    size, net, R, d = size_of(like), network_of(task.anchor, 0), tile.R, task.sizes.d
    z_bar = cotangents(like, net, tapes.anchor, 1, 0, R, b.base, b.base, tapes.work, 0, 0, team)
    input_cotangent(like, net, z_bar, R, b.x_bar)
    to_s, pulled = at(like, b.values_s + j * R * d * size), at(like, b.x_bar)
    for i in range(R * d):
        to_s[i] += pulled[i]
