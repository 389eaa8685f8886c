"""Reward and critic with their gradients for a tile of rows: what `jacrec.engine.jacobians.values` does, inside a kernel."""

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.layout import BIAS, FIRST, IN, LAYERS, PADDED, TAPE
from jacrec.kernels.cpu.base.mlp import cotangents, first_slot, record
from jacrec.kernels.cpu.base.products import axpy, dot
from jacrec.kernels.cpu.base.team import columns
from jacrec.kernels.cpu.base.tiles import at, size_of
from jacrec.kernels.cpu.gradient.transition import standardise

STATE_MEAN, STATE_STD, REWARD_MEAN, REWARD_STD = range(4)


@part
def first_layer(like, net, x, R, tape, J, j, crew):
    """The products of a network's first layer, from inputs x (R, IN), onto the tape; the crew's share of their columns."""
    width, size = net[LAYERS + PADDED], size_of(like)
    begin, end = columns(like, crew, width)
    z_1 = first_slot(like, net, tape, J, j, R) + begin * size
    axpy(like, x, net[IN], 1, R, net[FIRST] + begin * size, width, net[IN], end - begin, z_1, width)


@part
def input_cotangent(like, net, z_bar, R, x_bar):
    """z̄_1 (R, padded width) -> x̄ (R, IN)."""
    width = net[LAYERS + PADDED]
    dot(like, z_bar, width, R, net[FIRST], width, net[IN], width, x_bar, net[IN])


@part
def reward_gradient(like, net, scales, weight, grad_weight, R, d, m, state, action, tape, x, y, work, returns, r_s, r_a, crew):
    """Adds weight·r to returns (R,), writes grad_weight·(r_s, r_a), (R, d) and (R, m). Scratch: x (R, d+m), y (R,)."""
    size = size_of(like)
    standardise(like, R, d, m, scales[STATE_MEAN], scales[STATE_STD], state, action, x)
    first_layer(like, net, x, R, tape, type(R)(1), type(R)(0), crew)
    record(like, net, tape, type(R)(1), type(R)(0), R, net[LAYERS + BIAS], y, crew)
    mean, std = at(like, scales[REWARD_MEAN])[0], at(like, scales[REWARD_STD])[0]
    value, total = at(like, y), at(like, returns)
    for r in range(R):
        total[r] += weight * (mean + std * value[r])
        value[r] = grad_weight * std
    z_bar = cotangents(like, net, tape, type(R)(1), type(R)(0), R, y, y, work, type(R)(0), type(R)(0), crew)
    input_cotangent(like, net, z_bar, R, x)
    scale = at(like, scales[STATE_STD])
    for r in range(R):
        both = at(like, x + r * (d + m) * size)
        to_s, to_a = at(like, r_s + r * d * size), at(like, r_a + r * m * size)
        for i in range(d):
            to_s[i] = both[i] / scale[i]
        for i in range(m):
            to_a[i] = both[d + i]


@part
def critic_gradient(like, nets, weight, grad_weight, R, d, m, state, action, tape, x, x_bar, y, work, returns, Q_s, Q_a, crew):
    """Adds weight·min_i Q_i to returns (R,), writes grad_weight·(Q_s, Q_a); where critics tie, the mean of their gradients.

    Scratch: x, x_bar (R, d+m), y (critics, R); the tape holds one call of every critic.
    """
    size = size_of(like)
    critics, one, zero = nets.shape[0], type(R)(1), type(R)(0)
    for r in range(R):
        s, a, row = at(like, state + r * d * size), at(like, action + r * m * size), at(like, x + r * (d + m) * size)
        for i in range(d):
            row[i] = s[i]
        for i in range(m):
            row[d + i] = a[i]
    for c in range(critics):
        net = nets[c]
        own = tape + c * R * net[TAPE] * size
        first_layer(like, net, x, R, own, one, zero, crew)
        record(like, net, own, one, zero, R, net[LAYERS + BIAS], y + c * R * size, crew)
    value, total = at(like, y), at(like, returns)
    for r in range(R):
        least = value[r]
        for c in range(1, critics):
            other = value[c * R + r]
            # not (other >= least): a NaN wins, as in torch.amin
            if not (other >= least) and least == least:
                least = other
        total[r] += weight * least
        ties = type(like)(0)
        for c in range(critics):
            ties += type(like)(1) if value[c * R + r] == least else type(like)(0)
        for c in range(critics):
            share = type(like)(1) / ties if value[c * R + r] == least else type(like)(0)
            # without a least (NaN) the shares are 0/0, as in the plain form
            value[c * R + r] = grad_weight * (share if ties > 0 else least)
    for c in range(critics):
        net = nets[c]
        own = tape + c * R * net[TAPE] * size
        z_bar = cotangents(like, net, own, one, zero, R, y + c * R * size, y, work, zero, zero, crew)
        input_cotangent(like, net, z_bar, R, x_bar)
        for r in range(R):
            both = at(like, x_bar + r * (d + m) * size)
            to_s, to_a = at(like, Q_s + r * d * size), at(like, Q_a + r * m * size)
            for i in range(d):
                to_s[i] = both[i] + (to_s[i] if c else type(like)(0))
            for i in range(m):
                to_a[i] = both[d + i] + (to_a[i] if c else type(like)(0))
