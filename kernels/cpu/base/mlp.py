"""Value and cotangent passes of a network for a tile of rows, in buffers that the caller owns.

The mathematics is that of `jacrec.engine.jacobians.mlp`. `net` is a `jacrec.kernels.cpu.base.layout.Network`; matrices are
addresses of row-major arrays, hidden ones with padded width. A `team` shares the columns of every layer.
"""

from collections.abc import Sequence
from itertools import pairwise

from jacrec.kernels.cpu.base.host import VECTOR_BYTES, part
from jacrec.kernels.cpu.base.layout import GELU, MISH, RELU, SILU, Network, Stack, hidden, layer_of, network_of, slot
from jacrec.kernels.cpu.base.norms import normalise, normalise_back
from jacrec.kernels.cpu.base.products import axpy, axpy_add, dot, transpose
from jacrec.kernels.cpu.base.rows import WORD
from jacrec.kernels.cpu.base.scalar import gelu, mish, silu, tanh
from jacrec.kernels.cpu.base.team import barrier, columns
from jacrec.kernels.cpu.base.tiles import BIT_BYTES, at, integers, keep_bits, relu_bits, size_of

LINE = 16
"""int64 to which the rows of networks are rounded in `turn_weights`"""
_TURNED = Network._fields.index("turned")


@part
def activate(like, kind, R, width, padded, bias, z, h, begin, end):
    """z + bias -> value in h and gate in z, both (R, padded) with zeros behind `width`; for ReLU they may be one array.

    Only columns begin … end − 1 are computed.
    """
    b = at(like, bias)
    full = min(width, end)
    row = padded * size_of(like)
    for r in range(R):
        g, v = at(like, z + r * row), at(like, h + r * row)
        if kind == RELU and z == h:  # one store: two to the same array would not be vectorised
            for i in range(begin, full):
                x = g[i] + b[i]
                g[i] = type(like)(0) if x < 0 else x
        elif kind == RELU:
            for i in range(begin, full):
                x = g[i] + b[i]
                g[i] = type(like)(0) if x < 0 else x
            if h != z:  # one loop that wrote both would not be vectorised where they are one array
                for i in range(begin, full):
                    v[i] = g[i]
        elif kind == SILU:
            for i in range(begin, full):
                v[i], g[i] = silu(g[i] + b[i])
        elif kind == MISH:
            for i in range(begin, full):
                v[i], g[i] = mish(g[i] + b[i])
        elif kind == GELU:
            for i in range(begin, full):
                v[i], g[i] = gelu(g[i] + b[i])
        else:
            for i in range(begin, full):
                x = tanh(g[i] + b[i])
                v[i] = x
                g[i] = 1 - x * x
        for i in range(max(width, begin), end):
            g[i] = 0
            v[i] = 0


@part
def times_gate(like, kind, R, padded, x, gate, begin, end):
    """x ← x ⊙ act'(z), both (R, padded), in columns begin … end − 1."""
    row = padded * size_of(like)
    for r in range(R):
        v, g = at(like, x + r * row), at(like, gate + r * row)
        if kind == RELU:
            for i in range(begin, end):
                v[i] = type(like)(0) if g[i] <= 0 else v[i]
        else:
            for i in range(begin, end):
                v[i] *= g[i]


@part
def activate_signs(like, R, width, padded, bias, z, signs, stride, begin, end):
    """ReLU of z + bias in place, (R, padded) with zeros behind `width`, whole vectors; its slopes as bits, rows of `stride` elements."""
    size = size_of(like)
    lanes, b = VECTOR_BYTES // size, at(like, bias)
    for r in range(R):
        row, bits = z + r * padded * size, signs + r * stride * size
        v = at(like, row)
        for i in range(begin, min(width, end)):
            v[i] += b[i]
        for i in range(max(begin, width), end):
            v[i] = 0
        for i in range(begin, end, lanes):
            relu_bits(like, row + i * size, bits + i // lanes * BIT_BYTES)


@part
def times_signs(like, R, padded, x, signs, stride, begin, end):
    """x ← x ⊙ ReLU'(z), as `times_gate`, from the bits of `activate_signs`."""
    size = size_of(like)
    lanes = VECTOR_BYTES // size
    for r in range(R):
        row, bits = x + r * padded * size, signs + r * stride * size
        for i in range(begin, end, lanes):
            keep_bits(like, row + i * size, bits + i // lanes * BIT_BYTES)


@part
def add_to(like, count, x, y):
    """y ← y + x."""
    x, y = at(like, x), at(like, y)
    for i in range(count):
        y[i] += x[i]


@part
def add_columns(like, R, padded, x, y, begin, end):
    """y ← y + x, both (R, padded), in columns begin … end − 1."""
    step = padded * size_of(like)
    for r in range(R):
        add_to(like, end - begin, x + r * step + begin * size_of(like), y + r * step + begin * size_of(like))


@part
def copy_columns(like, R, padded, x, y, begin, end):
    """y ← x, both (R, padded), in columns begin … end − 1."""
    step = padded * size_of(like)
    for r in range(R):
        copy_to(like, end - begin, x + r * step + begin * size_of(like), y + r * step + begin * size_of(like))


@part
def copy_to(like, count, x, y):
    """y ← x."""
    x, y = at(like, x), at(like, y)
    for i in range(count):
        y[i] = x[i]


@part
def skips(net, layer):
    """Whether hidden layer `layer` adds its input to its output."""
    return net.residual != 0 and layer > 0 and layer_of(net, layer).width == layer_of(net, layer - 1).width


@part
def first_slot(like, net, tape, J, j, R):
    """The address of the first layer's products (R, padded width of layer 0), which the caller computes."""
    return hidden(like, net, tape, J, j, R, 0)


@part
def turn_weights(like, stack, to):
    """The stack with its hidden weights behind the first layers transposed, (width below, width): `record` is faster by them.

    to: memory for it, `turned_room` elements. Sums are then added up in another order.
    """
    size, words = size_of(like), stack.count * stack.length
    rows, own = integers(stack.rows), integers(to)
    for i in range(words):
        own[i] = rows[i]
    weights = to + -(-words // LINE) * LINE * WORD
    for n in range(stack.count):
        net = network_of(stack, n)
        own[n * stack.length + _TURNED] = weights
        for i in range(1, net.depth):
            layer, below = layer_of(net, i), layer_of(net, i - 1).padded
            transpose(like, layer.weight, below, layer.width, below, weights, layer.padded)
            weights += below * layer.padded * size
    return Stack(to, stack.count, stack.length)


def turned_room(stack: Stack, padded: Sequence[int], itemsize: int) -> int:
    """The elements that `turn_weights` writes for a stack whose hidden layers are so wide."""
    weights = sum(below * width for below, width in pairwise(padded))
    return -(-stack.count * stack.length // LINE) * LINE * WORD // itemsize + stack.count * weights


@part
def record(like, net, tape, J, j, R, first_bias, y, team):
    """The network's value y (R, outputs) from the first layer's products in `first_slot`, to which `first_bias` is added.

    Every thread of the team has written its columns of the products there, and has its own y; the tape is shared.
    """
    size = size_of(like)
    below, below_padded, turned = type(J)(0), type(J)(0), net.turned
    for i in range(net.depth):
        layer = layer_of(net, i)
        width, padded = layer.width, layer.padded
        z = hidden(like, net, tape, J, j, R, i)
        begin, end = columns(like, team, padded)
        outputs = min(end, width) - min(begin, width)
        if i and turned:
            own = turned + begin * size
            axpy(like, below, below_padded, 1, R, own, padded, below_padded, end - begin, z + begin * size, padded)
            turned += below_padded * padded * size
        elif i and outputs:
            weight = layer.weight + begin * below_padded * size
            dot(like, below, below_padded, R, weight, below_padded, outputs, below_padded, z + begin * size, padded)
        bias = layer.bias if i else first_bias
        h = z
        if net.spare:
            signs = slot(like, tape, layer.gate, layer.bits, J, j, R)
            activate_signs(like, R, width, padded, bias, z, signs, layer.bits, begin, end)
        else:
            h = slot(like, tape, layer.output, padded, J, j, R)
            activate(like, net.activation, R, width, padded, bias, z, h, begin, end)
        if net.norm:
            hat = slot(like, tape, layer.hat, padded, J, j, R)
            inv_std = slot(like, tape, layer.inv_std, 1, J, j, R)
            normalise(like, R, width, padded, net.eps, layer.gain, layer.shift, h, hat, inv_std, begin, end, team)
        if skips(net, i):
            add_columns(like, R, padded, below, h, begin, end)
        barrier(team)
        below, below_padded = h, padded
    out = net.outputs
    dot(like, below, below_padded, R, net.last_weight, below_padded, out, below_padded, y, out)
    bias = at(like, net.last_bias)
    for r in range(R):
        row = at(like, y + r * out * size)
        for i in range(out):
            row[i] += bias[i]
        if net.tanh:
            for i in range(out):
                row[i] = tanh(row[i])


@part
def cotangents(like, net, tape, J, j, R, y_bar, y, work, bars, gradient, team):
    """z̄_1 (R, padded width of layer 0) for output cotangents y_bar (R, outputs): its address.

    `work` has room for 4·R·widest numbers; it, the tape, `bars` and `gradient` are shared by the team. With `bars` (else 0)
    every layer's z̄ is kept there, laid out as a tape, and the LayerNorms' parameter cotangents are added to `gradient`. A
    network with tanh output needs `bars` and its value y.
    """
    size = size_of(like)
    buffer = R * net.widest * size
    above, above_weight, above_width = y_bar, net.last_weight, net.outputs
    if bars:
        kept = slot(like, bars, net.last_bar, net.outputs, J, j, R)
        source, target, value = at(like, y_bar), at(like, kept), at(like, y)
        if net.tanh:
            for i in range(R * net.outputs):
                target[i] = source[i] * (1 - value[i] * value[i])
        else:
            for i in range(R * net.outputs):
                target[i] = source[i]
        above = kept
    above_stride = net.outputs
    result, skip = work + 2 * buffer, work + 3 * buffer
    x = result
    if net.depth == 1:
        barrier(team)  # deeper networks have one before `result`, which may still be read, is overwritten
    for i in range(net.depth - 1, -1, -1):
        layer = layer_of(net, i)
        width, padded = layer.width, layer.padded
        begin, end = columns(like, team, padded)
        x = work + (i % 2) * buffer if i else result
        if bars:
            x = slot(like, bars, layer.bar, padded, J, j, R)
        if end > begin:
            weight = above_weight + begin * size
            axpy(like, above, above_stride, 1, R, weight, padded, above_width, end - begin, x + begin * size, padded)
        if i + 1 < net.depth and skips(net, i + 1):
            add_columns(like, R, padded, skip, x, begin, end)
        if skips(net, i):
            copy_columns(like, R, padded, x, skip, begin, end)
        if net.norm:
            hat = slot(like, tape, layer.hat, padded, J, j, R)
            inv_std = slot(like, tape, layer.inv_std, 1, J, j, R)
            to_gain = gradient + layer.gain_gradient * size if bars else type(J)(0)
            to_shift = gradient + layer.shift_gradient * size if bars else type(J)(0)
            normalise_back(like, R, width, padded, layer.gain, x, hat, inv_std, to_gain, to_shift, begin, end, team)
        if net.spare:
            times_signs(like, R, padded, x, slot(like, tape, layer.gate, layer.bits, J, j, R), layer.bits, begin, end)
        else:
            times_gate(like, net.activation, R, padded, x, slot(like, tape, layer.gate, padded, J, j, R), begin, end)
        barrier(team)
        above, above_stride, above_weight, above_width = x, padded, layer.weight, width
    return x


@part
def column_sums(like, rows, stride, x, y, begin, end):
    """y ← y + Σ_r x[r] in columns begin … end − 1."""
    sums = at(like, y)
    for r in range(rows):
        row = at(like, x + r * stride * size_of(like))
        for i in range(begin, end):
            sums[i] += row[i]


@part
def parameter_gradients(like, net, inputs, tape, bars, J, R, gradient, team):
    """Adds Σ z̄ᵀ x of every layer, over the J·R rows on the tape, to `gradient`; inputs (J·R, net.inputs)."""
    size, rows = size_of(like), J * R
    for i in range(net.depth + 1):
        if i < net.depth:
            layer = layer_of(net, i)
            width, stride = layer.width, layer.padded
            begin, end = columns(like, team, stride)
            begin, end = min(begin, width), min(end, width)
            z_bar = slot(like, bars, layer.bar, stride, J, 0, R)
            to_weight, to_bias = layer.weight_gradient, layer.bias_gradient
        else:
            width, stride = net.outputs, net.outputs
            begin, end = (0, width) if team.thread == 0 else (width, width)
            z_bar = slot(like, bars, net.last_bar, net.outputs, J, 0, R)
            to_weight, to_bias = net.last_weight_gradient, net.last_bias_gradient
        if i:
            below = layer_of(net, i - 1)
            padded = below.padded
            x = slot(like, tape, below.output, padded, J, 0, R)
            target = gradient + (to_weight + begin * padded) * size
            axpy_add(like, z_bar + begin * size, 1, stride, end - begin, x, padded, rows, padded, target, padded)
        else:
            first, last = columns(like, team, stride)
            target = gradient + (net.first_gradient + first) * size
            axpy_add(like, inputs, 1, net.inputs, net.inputs, z_bar + first * size, stride, rows, last - first, target, stride)
        column_sums(like, rows, stride, z_bar, gradient + to_bias * size, begin, end)
