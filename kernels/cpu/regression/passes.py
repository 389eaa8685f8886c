"""Value and cotangents of a block of rows, and the gradients of some outputs: twins of `jacrec.training.passes`.

No sum depends on the number of threads: those over the batch are taken in strips of `STRIP` rows, then over the strips.
"""

from jacrec.kernels.cpu.base.host import VECTOR_BYTES, part
from jacrec.kernels.cpu.base.mlp import activate, add_columns, column_sums, copy_columns, copy_to, times_gate
from jacrec.kernels.cpu.base.norms import normalise, normalise_back
from jacrec.kernels.cpu.base.products import dot
from jacrec.kernels.cpu.base.team import ALONE
from jacrec.kernels.cpu.base.tiles import at, size_of
from jacrec.kernels.cpu.rebrac.flat import share
from jacrec.kernels.cpu.rebrac.ragged import any_axpy, any_axpy_add, transpose
from jacrec.kernels.cpu.regression.job import GRADIENT_ROWS, PANEL, STRIP, layer_of

NEAR = 8
"""rows that stay in the nearest cache from one sweep to the next"""


@part
def few(like, layer):
    """Whether a layer has so few outputs that their sums are taken across lanes, without the transposed weight."""
    lanes = VECTOR_BYTES // size_of(like)
    return layer.outputs < lanes and layer.inputs % lanes == 0


@part
def turn(like, job):
    """This thread's panels of every weight and of its transpose."""
    size, lanes = size_of(like), VECTOR_BYTES // size_of(like)
    wide = PANEL * lanes
    for l in range(job.depth + 1):
        layer = layer_of(job, l)
        n, outputs = layer.inputs, layer.outputs
        first, count = share((outputs + wide - 1) // wide, job.thread, job.threads)
        for c in range(first * wide, 0 if few(like, layer) else (first + count) * wide, wide):
            transpose(like, layer.weight + c * n * size, n, min(wide, outputs - c), n, layer.turned + c * n * size, wide)
        first, count = share((n + wide - 1) // wide, job.thread, job.threads)
        for c in range(first * wide, (first + count) * wide if layer.panels else 0, wide):
            for o in range(outputs):
                copy_to(
                    like, min(wide, n - c), layer.weight + (o * n + c) * size, layer.panels + (c * outputs + o * wide) * size
                )


@part
def _times_panels(like, x, stride, rows, panels, n, columns, y, y_stride):
    """y (rows, columns) = x (rows, n) w for w (n, columns) in panels."""
    size = size_of(like)
    wide = PANEL * VECTOR_BYTES // size
    for c in range(0, columns, wide):
        any_axpy(like, x, stride, 1, rows, panels + c * n * size, wide, n, min(wide, columns - c), y + c * size, y_stride)


@part
def _product(like, layer, x, stride, rows, z):
    n = layer.inputs
    if few(like, layer):
        dot(like, x, stride, rows, layer.weight, n, layer.outputs, n, z, layer.stride)
    else:
        _times_panels(like, x, stride, rows, layer.turned, n, layer.padded, z, layer.stride)


@part
def _activate(like, job, layer, x, first, rows):
    """Values of a hidden layer from its products, on rows whose inputs begin at x."""
    size, width, padded, stride = size_of(like), layer.outputs, layer.padded, layer.stride
    z, h = layer.gate + first * stride * size, layer.out + first * stride * size
    activate(like, job.activation, rows, width, stride, layer.bias, z, h, 0, padded)
    if job.norm:
        hat, inv_std = layer.hat + first * stride * size, layer.inv_std + first * size
        normalise(like, rows, width, stride, job.eps, layer.gain, layer.shift, h, hat, inv_std, 0, padded, ALONE)
    if layer.skip:
        add_columns(like, rows, stride, x, h, 0, padded)


@part
def record(like, job, first, rows):
    """Values of `rows` rows from `first`: of the last layer its product, in `bar`."""
    size = size_of(like)
    layer = layer_of(job, 0)
    x, stride = job.x + first * layer.inputs * size, layer.inputs
    for l in range(job.depth):
        layer = layer_of(job, l)
        _product(like, layer, x, stride, rows, layer.gate + first * layer.stride * size)
        _activate(like, job, layer, x, first, rows)
        x, stride = layer.out + first * layer.stride * size, layer.stride
    layer = layer_of(job, job.depth)
    _product(like, layer, x, stride, rows, layer.bar + first * layer.stride * size)


@part
def least_squares(like, job, first, rows):
    """The last layer's products become the cotangents of the mean squared error; the sum of the squares of these rows."""
    size, total = size_of(like), 0.0
    layer = layer_of(job, job.depth)
    width, bias = layer.outputs, at(like, layer.bias)
    scale = type(like)(2 / (job.rows * width))
    for r in range(first, first + rows):
        y, goal = at(like, layer.bar + r * layer.stride * size), at(like, job.goal + r * width * size)
        for i in range(width):
            error = y[i] + bias[i] - goal[i]
            total += error * error
            y[i] = error * scale
    return total


@part
def _strip_sums(like, layer, strip):
    """The address of a strip's sums, which become zero."""
    sums = layer.sums + 3 * strip * layer.padded * size_of(like)
    x = at(like, sums)
    for i in range(3 * layer.padded):
        x[i] = 0
    return sums


@part
def _deactivate(like, job, layer, first, rows):
    """z̄ of a hidden layer from the cotangents of its outputs, in `bar`, on a strip of rows, and the strip's sums."""
    size, width, padded, stride = size_of(like), layer.outputs, layer.padded, layer.stride
    begin = first * stride * size
    x, sums = layer.bar + begin, _strip_sums(like, layer, first // STRIP)
    if job.norm:
        gain_bar, shift_bar = sums + padded * size, sums + 2 * padded * size
        hat, inv_std = layer.hat + begin, layer.inv_std + first * size
        normalise_back(like, rows, width, stride, layer.gain, x, hat, inv_std, gain_bar, shift_bar, 0, padded, ALONE)
    for r in range(0, rows, NEAR):
        some, z_bar = min(NEAR, rows - r), x + r * stride * size
        times_gate(like, job.activation, some, stride, z_bar, layer.gate + begin + r * stride * size, 0, padded)
        column_sums(like, some, stride, z_bar, sums, 0, width)


@part
def pull(like, job, first, rows):
    """z̄ of every layer from the last one's, on rows that begin with a strip."""
    size, end = size_of(like), first + rows
    above = layer_of(job, job.depth)
    for r in range(first, end, STRIP):
        sums, z_bar = _strip_sums(like, above, r // STRIP), above.bar + r * above.stride * size
        column_sums(like, min(STRIP, end - r), above.stride, z_bar, sums, 0, above.outputs)
    for l in range(job.depth - 1, -1, -1):
        layer = layer_of(job, l)
        n, stride = above.inputs, layer.stride
        x, z_bar = layer.bar + first * stride * size, above.bar + first * above.stride * size
        if above.panels:
            _times_panels(like, z_bar, above.stride, rows, above.panels, above.outputs, n, x, stride)
        else:
            any_axpy(like, z_bar, above.stride, 1, rows, above.weight, n, above.outputs, n, x, stride)
        if above.skip:
            add_columns(like, rows, stride, job.kept, x, 0, layer.padded)
        if layer.skip:
            copy_columns(like, rows, stride, x, job.kept, 0, layer.padded)
        for r in range(first, end, STRIP):
            _deactivate(like, job, layer, r, min(STRIP, end - r))
        above = layer


@part
def _sum_strips(like, layer, kind, strips, o, outputs, to):
    """The sums over all strips for the gradients `to` of the outputs from o."""
    padded, y = layer.padded, at(like, to)
    for b in range(strips):
        x = at(like, layer.sums + (3 * b + kind) * padded * size_of(like))
        for j in range(o, o + outputs):
            y[j] = x[j] + (y[j] if b else type(like)(0))


@part
def _square(like, count, x):
    x, total = at(like, x), type(like)(0)
    for i in range(count):
        total += x[i] * x[i]
    return total


@part
def weights(like, job):
    """The gradients of this thread's outputs of every layer, when z̄ and sums are complete, and their squares."""
    size, B = size_of(like), job.rows
    strips = (B + STRIP - 1) // STRIP
    first = layer_of(job, 0)
    x, stride = job.x, first.inputs
    for l in range(job.depth + 1):
        layer = layer_of(job, l)
        n, spacing = layer.inputs, layer.stride
        o, outputs = share(layer.outputs, job.thread, job.threads)
        bar, to = layer.bar + o * size, layer.weight_bar + o * n * size
        for r in range(0, B, GRADIENT_ROWS):
            rows = min(GRADIENT_ROWS, B - r)
            below = x + r * stride * size
            transpose(like, bar + r * spacing * size, spacing, rows, outputs, job.bars, GRADIENT_ROWS)
            if r:
                any_axpy_add(like, job.bars, GRADIENT_ROWS, 1, outputs, below, stride, rows, n, to, n)
            else:
                any_axpy(like, job.bars, GRADIENT_ROWS, 1, outputs, below, stride, rows, n, to, n)
        _sum_strips(like, layer, 0, strips, o, outputs, layer.bias_bar)
        if job.norm and l < job.depth:
            _sum_strips(like, layer, 1, strips, o, outputs, layer.gain_bar)
            _sum_strips(like, layer, 2, strips, o, outputs, layer.shift_bar)
        squares, bias_bar = at(0.0, layer.squares), at(like, layer.bias_bar)
        for j in range(o, o + outputs):
            squares[j] = _square(like, n, layer.weight_bar + j * n * size) + bias_bar[j] * bias_bar[j]
            if job.norm and l < job.depth:
                gain_bar, shift_bar = at(like, layer.gain_bar), at(like, layer.shift_bar)
                squares[j] += gain_bar[j] * gain_bar[j] + shift_bar[j] * shift_bar[j]
        x, stride = layer.out, spacing
