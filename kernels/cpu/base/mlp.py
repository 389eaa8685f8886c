"""Value and cotangent passes of a network for a tile of rows, in buffers that the caller owns.

The mathematics is that of `jacrec.engine.jacobians.mlp`. `net` is a row of `jacrec.kernels.cpu.base.layout`; matrices are addresses of
row-major arrays, hidden ones with padded width.
"""

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.layout import (
    ACTIVATION,
    BAR,
    BIAS,
    BIAS_GRADIENT,
    DEPTH,
    FIRST_GRADIENT,
    GAIN,
    GAIN_GRADIENT,
    GATE,
    GELU,
    HAT,
    IN,
    INV_STD,
    LAST_BAR,
    LAST_BIAS,
    LAST_BIAS_GRADIENT,
    LAST_WEIGHT,
    LAST_WEIGHT_GRADIENT,
    LAYER,
    LAYERS,
    MISH,
    NORM,
    OUT,
    OUTPUT,
    PADDED,
    RELU,
    RESIDUAL,
    SHIFT,
    SHIFT_GRADIENT,
    SILU,
    TANH,
    WEIGHT,
    WEIGHT_GRADIENT,
    WIDEST,
    WIDTH,
    slot,
)
from jacrec.kernels.cpu.base.norms import normalise, normalise_back, normalise_push
from jacrec.kernels.cpu.base.products import axpy, axpy_add, dot
from jacrec.kernels.cpu.base.scalar import gelu, mish, silu, tanh
from jacrec.kernels.cpu.base.team import columns, meet
from jacrec.kernels.cpu.base.tiles import at, size_of


@part
def activate(like, kind, R, width, padded, bias, z, h, begin, end):
    """z + bias -> value in h and gate in z, both (R, padded) with zeros behind `width`; they may be one array for ReLU.

    Only columns begin … end − 1 are done.
    """
    b = at(like, bias)
    full = min(width, end)
    row = padded * size_of(like)
    for r in range(R):
        g, v = at(like, z + r * row), at(like, h + r * row)
        if kind == RELU:
            for i in range(begin, full):
                x = g[i] + b[i]
                x = type(like)(0) if x < 0 else x
                g[i] = x
                v[i] = x
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
    here = LAYERS + layer * LAYER
    return net[RESIDUAL] != 0 and layer > 0 and net[here + WIDTH] == net[here - LAYER + WIDTH]


@part
def first_slot(like, net, tape, J, j, R):
    """Where the caller puts the first layer's products, (R, padded width of layer 0)."""
    return slot(like, tape, net[LAYERS + GATE], net[LAYERS + PADDED], J, j, R)


@part
def record(like, net, tape, J, j, R, first_bias, y, crew):
    """The network's value y (R, OUT) from the first layer's products in `first_slot`, to which `first_bias` is added.

    Every thread of a crew has put its columns of the products there, and has a y of its own; the tape is everybody's.
    """
    size = size_of(like)
    below, below_padded = type(J)(0), type(J)(0)
    for layer in range(net[DEPTH]):
        here = LAYERS + layer * LAYER
        width, padded = net[here + WIDTH], net[here + PADDED]
        z = slot(like, tape, net[here + GATE], padded, J, j, R)
        h = slot(like, tape, net[here + OUTPUT], padded, J, j, R)
        begin, end = columns(like, crew, padded)
        outputs = min(end, width) - min(begin, width)
        if layer and outputs:
            weight = net[here + WEIGHT] + begin * below_padded * size
            dot(like, below, below_padded, R, weight, below_padded, outputs, below_padded, z + begin * size, padded)
        bias = net[here + BIAS] if layer else first_bias
        activate(like, net[ACTIVATION], R, width, padded, bias, z, h, begin, end)
        if net[NORM]:
            hat = slot(like, tape, net[here + HAT], padded, J, j, R)
            inv_std = slot(like, tape, net[here + INV_STD], 1, J, j, R)
            normalise(like, R, width, padded, net[here + GAIN], net[here + SHIFT], h, hat, inv_std, begin, end, crew)
        if skips(net, layer):
            add_columns(like, R, padded, below, h, begin, end)
        meet(crew)
        below, below_padded = h, padded
    out = net[OUT]
    dot(like, below, below_padded, R, net[LAST_WEIGHT], below_padded, out, below_padded, y, out)
    bias = at(like, net[LAST_BIAS])
    for r in range(R):
        row = at(like, y + r * out * size)
        for i in range(out):
            row[i] += bias[i]
        if net[TANH]:
            for i in range(out):
                row[i] = tanh(row[i])


@part
def cotangents(like, net, tape, J, j, R, y_bar, y, work, bars, gradient, crew):
    """z̄_1 (R, padded width of layer 0) for output cotangents y_bar (R, OUT): its address.

    `work` has room for 4·R·WIDEST numbers; it, the tape, `bars` and `gradient` are the whole crew's. With `bars` (else 0)
    every layer's z̄ is kept there, laid out as a tape, and the LayerNorms' parameter cotangents are added to `gradient`. A
    network with tanh output needs `bars` and its value y.
    """
    size = size_of(like)
    buffer = R * net[WIDEST] * size
    above, above_weight, above_width = y_bar, net[LAST_WEIGHT], net[OUT]
    if bars:
        kept = slot(like, bars, net[LAST_BAR], net[OUT], J, j, R)
        source, target, value = at(like, y_bar), at(like, kept), at(like, y)
        if net[TANH]:
            for i in range(R * net[OUT]):
                target[i] = source[i] * (1 - value[i] * value[i])
        else:
            for i in range(R * net[OUT]):
                target[i] = source[i]
        above = kept
    above_stride = net[OUT]
    result, skip = work + 2 * buffer, work + 3 * buffer
    x = result
    if net[DEPTH] == 1:
        meet(crew)  # deeper networks meet before `result`, which may still be read, is written again
    for layer in range(net[DEPTH] - 1, -1, -1):
        here = LAYERS + layer * LAYER
        width, padded = net[here + WIDTH], net[here + PADDED]
        begin, end = columns(like, crew, padded)
        x = work + (layer % 2) * buffer if layer else result
        if bars:
            x = slot(like, bars, net[here + BAR], padded, J, j, R)
        if end > begin:
            weight = above_weight + begin * size
            axpy(like, above, above_stride, 1, R, weight, padded, above_width, end - begin, x + begin * size, padded)
        if layer + 1 < net[DEPTH] and skips(net, layer + 1):
            add_columns(like, R, padded, skip, x, begin, end)
        if skips(net, layer):
            copy_columns(like, R, padded, x, skip, begin, end)
        if net[NORM]:
            hat = slot(like, tape, net[here + HAT], padded, J, j, R)
            inv_std = slot(like, tape, net[here + INV_STD], 1, J, j, R)
            to_gain = gradient + net[here + GAIN_GRADIENT] * size if bars else type(J)(0)
            to_shift = gradient + net[here + SHIFT_GRADIENT] * size if bars else type(J)(0)
            normalise_back(like, R, width, padded, net[here + GAIN], x, hat, inv_std, to_gain, to_shift, begin, end, crew)
        gate = slot(like, tape, net[here + GATE], padded, J, j, R)
        times_gate(like, net[ACTIVATION], R, padded, x, gate, begin, end)
        meet(crew)
        above, above_stride, above_weight, above_width = x, padded, net[here + WEIGHT], width
    return x


@part
def push(like, net, particles, T, first_bias, x, gate, y):
    """Value and T tangents of each particle: rows (particles·(1+T), ·), the value first, as in `jacrec.engine.jacobians.mlp`.

    x holds the first layer's products, without the bias, and as much room again behind 2·rows·WIDEST numbers in all; `gate`
    has room for WIDEST numbers; y (rows, OUT) is written.
    """
    size, rows = size_of(like), particles * (1 + T)
    other = x + rows * net[WIDEST] * size
    below_padded = net[LAYERS + PADDED]
    for layer in range(net[DEPTH]):
        here = LAYERS + layer * LAYER
        width, padded = net[here + WIDTH], net[here + PADDED]
        z = other if layer else x
        if layer:
            dot(like, x, below_padded, rows, net[here + WEIGHT], below_padded, width, below_padded, z, padded)
        for p in range(particles):
            value = z + p * (1 + T) * padded * size
            bias = net[here + BIAS] if layer else first_bias
            activate(like, net[ACTIVATION], 1, width, padded, bias, value, gate, 0, padded)
            for t in range(1, 1 + T):
                row = at(like, value + t * padded * size)
                for i in range(width, padded):
                    row[i] = type(like)(0)
                times_gate(like, net[ACTIVATION], 1, padded, value + t * padded * size, value, 0, padded)
            copy_to(like, padded, gate, value)
            if net[NORM]:
                normalise_push(like, T, width, padded, net[here + GAIN], net[here + SHIFT], value, gate)
        if skips(net, layer):
            add_to(like, rows * padded, x, z)
        if layer:
            x, other = z, x
        below_padded = padded
    out = net[OUT]
    dot(like, x, below_padded, rows, net[LAST_WEIGHT], below_padded, out, below_padded, y, out)
    offset, values = at(like, net[LAST_BIAS]), at(like, y)
    for p in range(particles):
        for i in range(out):
            values[p * (1 + T) * out + i] += offset[i]


@part
def column_sums(like, rows, stride, x, y, begin, end):
    """y ← y + Σ_r x[r] in columns begin … end − 1."""
    sums = at(like, y)
    for r in range(rows):
        row = at(like, x + r * stride * size_of(like))
        for i in range(begin, end):
            sums[i] += row[i]


@part
def parameter_gradients(like, net, inputs, tape, bars, J, R, gradient, crew):
    """Adds Σ z̄ᵀ x of every layer, over the J·R rows on the tape, to `gradient`; inputs (J·R, IN)."""
    size, rows = size_of(like), J * R
    for layer in range(net[DEPTH] + 1):
        here = LAYERS + layer * LAYER
        if layer < net[DEPTH]:
            width, stride = net[here + WIDTH], net[here + PADDED]
            begin, end = columns(like, crew, stride)
            begin, end = min(begin, width), min(end, width)
            z_bar = slot(like, bars, net[here + BAR], stride, J, 0, R)
            to_weight, to_bias = net[here + WEIGHT_GRADIENT], net[here + BIAS_GRADIENT]
        else:
            width, stride = net[OUT], net[OUT]
            begin, end = (width * 0, width) if crew[0] == 0 else (width, width)
            z_bar = slot(like, bars, net[LAST_BAR], stride, J, 0, R)
            to_weight, to_bias = net[LAST_WEIGHT_GRADIENT], net[LAST_BIAS_GRADIENT]
        if layer:
            below = here - LAYER
            padded = net[below + PADDED]
            x = slot(like, tape, net[below + OUTPUT], padded, J, 0, R)
            target = gradient + (to_weight + begin * padded) * size
            axpy_add(like, z_bar + begin * size, 1, stride, end - begin, x, padded, rows, padded, target, padded)
        else:
            first, last = columns(like, crew, stride)
            target = gradient + (net[FIRST_GRADIENT] + first) * size
            axpy_add(like, inputs, 1, net[IN], net[IN], z_bar + first * size, stride, rows, last - first, target, stride)
        column_sums(like, rows, stride, z_bar, gradient + to_bias * size, begin, end)
