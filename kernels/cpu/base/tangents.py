"""Several tangents or cotangents of a network's value for a tile of rows, and the length of each row's own gradient.

Buffers and arguments as in `jacrec.kernels.cpu.base.mlp`.
"""

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.layout import RELU, layer_of, slot
from jacrec.kernels.cpu.base.mlp import activate, add_to, copy_to, skips, times_gate
from jacrec.kernels.cpu.base.norms import normalise_pull, normalise_push
from jacrec.kernels.cpu.base.products import axpy, dot, dot_listed
from jacrec.kernels.cpu.base.rows import WORD
from jacrec.kernels.cpu.base.tiles import LISTED, at, integers, size_of

FEW_TANGENTS = 6
"""tangents of all particles from which on it pays to skip the units behind a ReLU that are not active"""


@part
def push(like, net, particles, T, first_bias, x, gate, y, lists):
    """Value and T tangents of each particle: rows (particles·(1+T), ·), the value first, as in `jacrec.engine.jacobians.mlp`.

    x holds the first layer's products without the bias and has room for 2·rows·widest numbers; `gate` has room for widest
    numbers, `lists` for `list_room(widest, T)`; y (rows, outputs) is written. Behind a ReLU, tangents are computed for a particle's
    active units alone.
    """
    size, S = size_of(like), 1 + T
    rows, other = particles * S, x + particles * S * net.widest * size
    few = net.activation == RELU and T > 1 and particles * T >= FEW_TANGENTS
    below_padded = layer_of(net, 0).padded
    for i in range(net.depth):
        layer = layer_of(net, i)
        width, padded = layer.width, layer.padded
        z = other if i else x
        if i and few:
            below, above = S * below_padded, S * padded
            dot(like, x, below, particles, layer.weight, below_padded, width, below_padded, z, above)
        elif i:
            dot(like, x, below_padded, rows, layer.weight, below_padded, width, below_padded, z, padded)
        for p in range(particles):
            value = z + p * S * padded * size
            bias = layer.bias if i else first_bias
            activate(like, net.activation, 1, width, padded, bias, value, gate, 0, padded)
            if i and few:
                tangents = x + (p * S + 1) * below_padded * size
                push_active(like, net, layer, T, tangents, below_padded, value, lists)
            else:
                for t in range(1, S):
                    row = at(like, value + t * padded * size)
                    for c in range(width, padded):
                        row[c] = type(like)(0)
                    times_gate(like, net.activation, 1, padded, value + t * padded * size, value, 0, padded)
            copy_to(like, padded, gate, value)
            if net.norm:
                normalise_push(like, T, width, padded, net.eps, layer.gain, layer.shift, value, gate)
        if skips(net, i):
            add_to(like, rows * padded, x, z)
        if i:
            x, other = z, x
        below_padded = padded
    out = net.outputs
    dot(like, x, below_padded, rows, net.last_weight, below_padded, out, below_padded, y, out)
    offset, values = at(like, net.last_bias), at(like, y)
    for p in range(particles):
        for i in range(out):
            values[p * S * out + i] += offset[i]


@part
def push_active(like, net, layer, T, x, x_padded, gate, lists):
    """T tangents x (T, x_padded) through a hidden layer and its ReLU, into the rows behind `gate`: 0 where that is 0."""
    size, padded = size_of(like), layer.padded
    active, g = integers(lists), at(like, gate)
    count = 0
    for i in range(layer.width):
        active[count] = i
        count += 0 if g[i] <= 0 else 1
    listed = count
    while listed % LISTED:
        active[listed] = active[count - 1]
        listed += 1
    packed, stride = lists + (net.widest + LISTED) * WORD, net.widest + LISTED
    dot_listed(like, x, x_padded, T, layer.weight, x_padded, lists, listed, x_padded, packed, stride)
    for t in range(T):
        source, target = at(like, packed + t * stride * size), at(like, gate + (1 + t) * padded * size)
        for i in range(padded):
            target[i] = type(like)(0)
        for i in range(count):
            target[active[i]] = source[i]


def list_room(widest: int, T: int) -> int:
    """Numbers that `push` needs for the active units and their tangents; its beginning has to be aligned for int64."""
    return (2 + T) * (widest + LISTED)


@part
def pull(like, net, tape, J, j, R, T, y_bar, y, work):
    """z̄_1 (R·T, padded width of layer 0) for T output cotangents of each row, y_bar (R, T, outputs): its address.

    y (R, outputs) is the value, whose tanh's slope is applied to y_bar in place. `work` has room for 3·R·T·widest numbers.
    """
    size, out = size_of(like), net.outputs
    buffer = R * T * net.widest * size
    if net.tanh:
        for r in range(R):
            value, bar = at(like, y + r * out * size), at(like, y_bar + r * T * out * size)
            for t in range(T):
                for i in range(out):
                    bar[t * out + i] *= 1 - value[i] * value[i]
    above, above_stride, above_weight, above_width = y_bar, out, net.last_weight, out
    x, skip = work, work + 2 * buffer
    for i in range(net.depth - 1, -1, -1):
        layer = layer_of(net, i)
        width, padded = layer.width, layer.padded
        x = work + (i % 2) * buffer
        axpy(like, above, above_stride, 1, R * T, above_weight, padded, above_width, padded, x, padded)
        if i + 1 < net.depth and skips(net, i + 1):
            add_to(like, R * T * padded, skip, x)
        if skips(net, i):
            copy_to(like, R * T * padded, x, skip)
        gate = slot(like, tape, layer.gate, padded, J, j, R)
        for r in range(R):
            rows = x + r * T * padded * size
            if net.norm:
                hat = slot(like, tape, layer.hat, padded, J, j, R) + r * padded * size
                inv_std = slot(like, tape, layer.inv_std, 1, J, j, R) + r * size
                normalise_pull(like, T, width, padded, layer.gain, rows, hat, inv_std)
            for t in range(T):
                times_gate(like, net.activation, 1, padded, rows + t * padded * size, gate + r * padded * size, 0, padded)
        above, above_stride, above_weight, above_width = x, padded, layer.weight, width
    return x


@part
def row_squares(like, net, inputs, tape, bars, J, R, counted, y):
    """‖Σ_j z̄_jᵀ x_j‖² of every row over its J calls and all layers into y (R,), without LayerNorms; as `parameter_gradients`.

    counted: address of int64, whether each layer's weight and bias count. A pair of calls has the product (z̄·z̄')(x·x' + 1).
    """
    size, totals = size_of(like), at(like, y)
    for r in range(R):
        totals[r] = type(like)(0)
    for i in range(net.depth + 1):
        layer, below = layer_of(net, min(i, net.depth - 1)), layer_of(net, max(i - 1, 0))
        stride = layer.padded if i < net.depth else net.outputs
        z = slot(like, bars, layer.bar if i < net.depth else net.last_bar, stride, J, 0, R)
        wide = below.padded if i else net.inputs
        x = slot(like, tape, below.output, wide, J, 0, R) if i else inputs
        weight, bias = type(like)(integers(counted)[2 * i]), type(like)(integers(counted)[2 * i + 1])
        for r in range(R):
            for j in range(J):
                for k in range(j + 1):
                    a, b = r + j * R, r + k * R
                    along_z = inner(like, stride, z + a * stride * size, z + b * stride * size)
                    along_x = inner(like, wide, x + a * wide * size, x + b * wide * size)
                    totals[r] += along_z * (weight * along_x + bias) * type(like)(1 if j == k else 2)


@part
def inner(like, count, x, y):
    """x · y."""
    x, y, total = at(like, x), at(like, y), type(like)(0)
    for i in range(count):
        total += x[i] * y[i]
    return total
