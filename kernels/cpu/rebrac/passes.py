"""Value and cotangent passes on one thread's share of the rows: twins of `jacrec.training.passes`.

A product, then one sweep over its rows. `rows` rows are taken from row `first` of a batch of B on; W is the number of
elements between the rows of tapes and workspaces, at least the largest width.
"""

from typing import Any, NamedTuple

import numpy as np

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.rebrac.flat import kinds, share
from jacrec.kernels.cpu.rebrac.ragged import any_axpy, any_dot
from jacrec.models.networks import LayerNorm

EPS = LayerNorm.eps


class Tape(NamedTuple):
    """What the value pass keeps for the cotangents, and these for the gradients."""

    h: Any  # (L, B, W): inputs of the LayerNorm; their z̄ later
    y: Any  # (L, B, W): the layers' outputs
    mean: Any  # (L, B): LayerNorm's mean
    inv_std: Any  # (L, B): and 1/σ
    sums: Any  # (threads, L + 1, 3, W): every thread's gradients of bias, gain and offset


class Workspace(NamedTuple):
    """A thread's buffers for `block` rows at a time."""

    one: Any  # (block, W)
    other: Any  # (block, W)
    mean: Any  # (block,)
    inv_std: Any  # (block,)
    transposed: Any  # workspace for the largest weight, transposed


@part
def address(array, offset):
    """The address of element `offset` of a contiguous array."""
    return array.ctypes.data + offset * array.itemsize


@part
def affine(net, l, x, x_stride, rows, y, y_first, transposed):
    """The rows of y from `y_first` become x wᵀ with layer l's weight; x is an address."""
    inputs, outputs, stride = net.widths[l], net.widths[l + 1], y.shape[1]
    w, to = address(net.value, net.offsets[l, 0]), address(y, y_first * stride)
    any_dot(net.value[0], x, x_stride, rows, w, inputs, outputs, inputs, to, stride, address(transposed, 0))


@part
def affine_back(net, l, z_bar, stride, rows, x_bar):
    """x_bar = z_bar w with layer l's weight; z_bar is an address."""
    inputs, outputs = net.widths[l], net.widths[l + 1]
    w = address(net.value, net.offsets[l, 0])
    any_axpy(net.value[0], z_bar, stride, 1, rows, w, inputs, outputs, inputs, address(x_bar, 0), x_bar.shape[1])


@part
def activate(net, l, z, first, y, y_first, rows, mean, inv_std):
    """z ← h = relu(z + b), y ← [LayerNorm](h) on `rows` rows from `first` and `y_first`; h's moments into mean, inv_std."""
    width, place = net.widths[l + 1], net.offsets[l]
    bias = net.value[place[1] : place[1] + width]
    gain, offset = net.value[place[2] : place[2] + width], net.value[place[3] : place[3] + width]
    real, zero = z.dtype.type, z.dtype.type(0)
    for i in range(rows):
        r = first + i
        h, out = z[r], y[y_first + i]
        total = zero
        for j in range(width):
            x = h[j] + bias[j]
            x = zero if x < zero else x  # not a number stays one
            h[j] = x
            total += x
        if not net.norm:
            for j in range(width):
                out[j] = h[j]
            continue
        mu = total / real(width)
        spread = zero
        for j in range(width):
            spread += (h[j] - mu) * (h[j] - mu)
        inv = real(1) / np.sqrt(spread / real(width) + real(EPS))
        mean[r], inv_std[r] = mu, inv
        for j in range(width):
            out[j] = (h[j] - mu) * inv * gain[j] + offset[j]


@part
def finish(net, out, first, rows):
    """out ← [tanh](out + b) on `rows` rows from `first`."""
    bias = net.offsets[-1, 1]
    for r in range(first, first + rows):
        for j in range(net.widths[-1]):
            x = out[r, j] + net.value[bias + j]
            out[r, j] = np.tanh(x) if net.tanh else x


@part
def record(net, tape, x, x_stride, first, rows, workspace, keep, out):
    """out (B, widths[-1]) of the rows, which begin at address x; the tape's y is written only with `keep`."""
    W, layers = workspace.one.shape[1], len(net.widths) - 2
    for l in range(layers):
        affine(net, l, x, x_stride, rows, tape.h[l], first, workspace.transposed)
        if keep:
            activate(net, l, tape.h[l], first, tape.y[l], first, rows, tape.mean[l], tape.inv_std[l])
            x = address(tape.y[l], first * W)
        else:
            activate(net, l, tape.h[l], first, workspace.other, 0, rows, tape.mean[l], tape.inv_std[l])
            x = address(workspace.other, 0)
        x_stride = W
    affine(net, layers, x, x_stride, rows, out, first, workspace.transposed)
    finish(net, out, first, rows)


@part
def value(net, x, x_stride, first, rows, workspace, out):
    """The same without a tape."""
    layers = len(net.widths) - 2
    for l in range(layers):
        affine(net, l, x, x_stride, rows, workspace.one, 0, workspace.transposed)
        activate(net, l, workspace.one, 0, workspace.other, 0, rows, workspace.mean, workspace.inv_std)
        x, x_stride = address(workspace.other, 0), workspace.other.shape[1]
    affine(net, layers, x, x_stride, rows, out, first, workspace.transposed)
    finish(net, out, first, rows)


@part
def activate_backward(net, l, bar, h, first, rows, mean, inv_std, sums):
    """h ← z̄ from bar = ȳ (rows, W): `activate` for cotangents; b̄, ḡain, ōffset are added to sums (3, W)."""
    width, place = net.widths[l + 1], net.offsets[l]
    gain = net.value[place[2] : place[2] + width]
    zero, per = h.dtype.type(0), h.dtype.type(1) / h.dtype.type(width)
    bias_bar, gain_bar, offset_bar = sums[0], sums[1], sums[2]
    for i in range(rows):
        y_bar, z = bar[i], h[first + i]
        if not net.norm:
            for j in range(width):
                x = y_bar[j] if z[j] > zero else zero
                z[j] = x
                bias_bar[j] += x
            continue
        mu, inv = mean[first + i], inv_std[first + i]
        plain, along = zero, zero
        for j in range(width):
            g = y_bar[j] * gain[j]
            plain += g
            along += g * (z[j] - mu)
        plain *= per
        along *= per * inv * inv
        for j in range(width):
            centred = z[j] - mu
            x = inv * (y_bar[j] * gain[j] - plain - centred * along)
            x = x if z[j] > zero else zero
            gain_bar[j] += y_bar[j] * (centred * inv)
            offset_bar[j] += y_bar[j]
            bias_bar[j] += x
            z[j] = x


@part
def activate_backward_rows(net, l, bar, out, h, which, rows, mean, inv_std):
    """out[i] ← z̄ of row which[i] from bar[i] = ȳ, for i < rows; h stays, no sums: for input cotangents alone."""
    width, place = net.widths[l + 1], net.offsets[l]
    gain = net.value[place[2] : place[2] + width]
    zero, per = h.dtype.type(0), h.dtype.type(1) / h.dtype.type(width)
    for i in range(rows):
        y_bar, z, to = bar[i], h[which[i]], out[i]
        if not net.norm:
            for j in range(width):
                to[j] = y_bar[j] if z[j] > zero else zero
            continue
        mu, inv = mean[which[i]], inv_std[which[i]]
        plain, along = zero, zero
        for j in range(width):
            g = y_bar[j] * gain[j]
            plain += g
            along += g * (z[j] - mu)
        plain *= per
        along *= per * inv * inv
        for j in range(width):
            x = inv * (y_bar[j] * gain[j] - plain - (z[j] - mu) * along)
            to[j] = x if z[j] > zero else zero


@part
def pull(net, tape, out_bar, first, rows, workspace, sums):
    """z̄ of every hidden layer into the tape's h, from out_bar (B, widths[-1]); sums (L + 1, 3, W) belong to this thread."""
    W, layers, width = workspace.one.shape[1], len(net.widths) - 2, out_bar.shape[1]
    for i in range(first, first + rows):
        for j in range(width):
            sums[layers, 0, j] += out_bar[i, j]
    bar, stride = address(out_bar, first * width), width
    for l in range(layers - 1, -1, -1):
        affine_back(net, l + 1, bar, stride, rows, workspace.one)
        activate_backward(net, l, workspace.one, tape.h[l], first, rows, tape.mean[l], tape.inv_std[l], sums[l])
        bar, stride = address(tape.h[l], first * W), W


@part
def pull_inputs(net, tape, which, rows, workspace, x_bar):
    """x_bar (rows, widths[0]): the sum of outputs, differentiated by the inputs of the rows `which`; for one output."""
    layers = len(net.widths) - 2
    last = net.offsets[layers, 0]
    for i in range(rows):
        workspace.one[i, : net.widths[-2]] = net.value[last : last + net.widths[-2]]
    for l in range(layers - 1, -1, -1):
        activate_backward_rows(net, l, workspace.one, workspace.other, tape.h[l], which, rows, tape.mean[l], tape.inv_std[l])
        affine_back(net, l, address(workspace.other, 0), workspace.other.shape[1], rows, workspace.one if l > 0 else x_bar)


@part
def weights(net, tape, gradient, x, x_stride, out_bar, workspace, thread, threads):
    """The gradients of a thread's outputs of every layer; x is the inputs' address, and all sums of the tape are complete."""
    W, layers, B = workspace.one.shape[1], len(net.widths) - 2, tape.h.shape[1]
    for l in range(layers + 1):
        inputs = net.widths[l]
        o, outputs = share(net.widths[l + 1], thread, threads)
        if outputs == 0:
            continue
        bar, stride = (address(tape.h[l], o), W) if l < layers else (address(out_bar, o), out_bar.shape[1])
        to = address(gradient, net.offsets[l, 0] + o * inputs)
        any_axpy(net.value[0], bar, 1, stride, outputs, x, x_stride, B, inputs, to, inputs)
        for kind in range(kinds(net, l) - 1):
            for j in range(o, o + outputs):
                total = tape.sums[0, l, kind, j]
                for t in range(1, threads):
                    total += tape.sums[t, l, kind, j]
                gradient[net.offsets[l, 1 + kind] + j] = total
        if l < layers:
            x, x_stride = address(tape.y[l], 0), W
