"""The passes of `jacrec.training.passes` for one thread's share of the rows, fused: a product, then one sweep over its rows.

A network lies in a flat vector (`jacrec.training.flat`): `widths` (L+2,) are its layers' sizes from input to output and
`places` (L+1, 4) the offsets of weight, bias, gain and offset of each layer (gain and offset of the last are not used).
Layers are ReLU [→ LayerNorm]; W names the largest width, by which the rows of work space are spaced.
"""

import numpy as np

from jacrec.networks import MLP
from jacrec.training.flat import Flat
from jacrec.training.native import part, product

EPS = 1e-6  # of the LayerNorm


@part
def at(array, offset):
    """The address of element `offset` of a contiguous array."""
    return array.ctypes.data + offset * array.itemsize


@part
def settle(z, first, y, y_first, rows, width, value, place, norm, mean, inv_std):
    """z ← h = relu(z + b), y ← [LayerNorm](h) on `rows` rows from `first` and `y_first`; h's moments into mean, inv_std."""
    bias = value[place[1] : place[1] + width]
    gain, offset = value[place[2] : place[2] + width], value[place[3] : place[3] + width]
    zero = z.dtype.type(0)
    for i in range(rows):
        r = first + i
        h, out = z[r], y[y_first + i]
        total = zero
        for j in range(width):
            x = h[j] + bias[j]
            x = zero if x < zero else x  # not a number stays one
            h[j] = x
            total += x
        if not norm:
            for j in range(width):
                out[j] = h[j]
            continue
        mu = total / z.dtype.type(width)
        spread = zero
        for j in range(width):
            spread += (h[j] - mu) * (h[j] - mu)
        inv = z.dtype.type(1) / np.sqrt(spread / z.dtype.type(width) + z.dtype.type(EPS))
        mean[r], inv_std[r] = mu, inv
        for j in range(width):
            out[j] = (h[j] - mu) * inv * gain[j] + offset[j]


@part
def finish(out, first, rows, width, value, place, tanh):
    """out ← [tanh](out + b) on `rows` rows from `first`."""
    for r in range(first, first + rows):
        for j in range(width):
            x = out[r, j] + value[place[1] + j]
            out[r, j] = np.tanh(x) if tanh else x


@part
def record(value, widths, places, norm, tanh, x, x_stride, first, rows, h, y, keep, mean, inv_std, out):
    """out (·, widths[-1]) of the rows from `first`, whose inputs begin at address x.

    h, mean and inv_std (L, B, W), (L, B) keep what `pull` needs, y (L, B, W) what `weights` needs; without `keep`, y
    (1, ≥ rows, W) is work space.
    """
    like, W, layers = value[0], h.shape[2], len(widths) - 2
    for l in range(layers):
        product(
            like,
            False,
            True,
            rows,
            widths[l + 1],
            widths[l],
            x,
            x_stride,
            at(value, places[l, 0]),
            widths[l],
            at(h, (l * h.shape[1] + first) * W),
            W,
        )
        settle(
            h[l],
            first,
            y[l if keep else 0],
            first if keep else 0,
            rows,
            widths[l + 1],
            value,
            places[l],
            norm,
            mean[l],
            inv_std[l],
        )
        x, x_stride = at(y, (l * y.shape[1] + first) * W if keep else 0), W
    product(
        like,
        False,
        True,
        rows,
        widths[-1],
        widths[-2],
        x,
        x_stride,
        at(value, places[layers, 0]),
        widths[-2],
        at(out, first * out.shape[1]),
        out.shape[1],
    )
    finish(out, first, rows, widths[-1], value, places[layers], tanh)


@part
def evaluate(value, widths, places, norm, tanh, x, x_stride, first, rows, one, other, mean, inv_std, out):
    """The same without keeping anything; `one`, `other` (≥ rows, W) are work space."""
    like, W, layers = value[0], one.shape[1], len(widths) - 2
    for l in range(layers):
        product(
            like, False, True, rows, widths[l + 1], widths[l], x, x_stride, at(value, places[l, 0]), widths[l], at(one, 0), W
        )
        settle(one, 0, other, 0, rows, widths[l + 1], value, places[l], norm, mean, inv_std)
        x, x_stride = at(other, 0), W
    product(
        like,
        False,
        True,
        rows,
        widths[-1],
        widths[-2],
        x,
        x_stride,
        at(value, places[layers, 0]),
        widths[-2],
        at(out, first * out.shape[1]),
        out.shape[1],
    )
    finish(out, first, rows, widths[-1], value, places[layers], tanh)


@part
def unsettle(bar, h, first, rows, width, value, place, norm, mean, inv_std, sums):
    """h ← z̄ from bar = ȳ (rows, W): the inverse of `settle` for cotangents; b̄, ḡain, ōffset are added to sums (3, W)."""
    gain = value[place[2] : place[2] + width]
    zero, per = h.dtype.type(0), h.dtype.type(1) / h.dtype.type(width)
    bias_bar, gain_bar, offset_bar = sums[0], sums[1], sums[2]
    for i in range(rows):
        y_bar, z = bar[i], h[first + i]
        if not norm:
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
            along += g * (h[first + i, j] - mu)
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
def unsettle_some(bar, out, h, which, rows, width, value, place, norm, mean, inv_std):
    """out[i] ← z̄ of row which[i] from bar[i] = ȳ, for i < rows; h stays, no sums: for input cotangents alone."""
    gain = value[place[2] : place[2] + width]
    zero, per = h.dtype.type(0), h.dtype.type(1) / h.dtype.type(width)
    for i in range(rows):
        y_bar, z, to = bar[i], h[which[i]], out[i]
        if not norm:
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
def pull(value, widths, places, norm, out_bar, first, rows, h, mean, inv_std, work, sums):
    """z̄ of every hidden layer into h, from out_bar (B, widths[-1]); sums (L+1, 3, W) take what belongs to single columns."""
    like, W, layers = value[0], work.shape[1], len(widths) - 2
    bar, stride, width = at(out_bar, first * out_bar.shape[1]), out_bar.shape[1], widths[-1]
    for i in range(first, first + rows):
        for j in range(width):
            sums[layers, 0, j] += out_bar[i, j]
    for l in range(layers - 1, -1, -1):
        product(
            like,
            False,
            False,
            rows,
            widths[l + 1],
            width,
            bar,
            stride,
            at(value, places[l + 1, 0]),
            widths[l + 1],
            at(work, 0),
            W,
        )
        unsettle(work, h[l], first, rows, widths[l + 1], value, places[l], norm, mean[l], inv_std[l], sums[l])
        bar, stride, width = at(h, (l * h.shape[1] + first) * W), W, widths[l + 1]


@part
def pull_input(value, widths, places, norm, which, rows, h, mean, inv_std, one, other, x_bar):
    """x_bar (rows, ≥ widths[0]) = the gradient of the single output by the input on the rows `which` (rows,)."""
    like, W, layers = value[0], one.shape[1], len(widths) - 2
    last = value[places[layers, 0] : places[layers, 0] + widths[-2]]
    for i in range(rows):
        one[i, : widths[-2]] = last
    for l in range(layers - 1, -1, -1):
        unsettle_some(one, other, h[l], which, rows, widths[l + 1], value, places[l], norm, mean[l], inv_std[l])
        if l > 0:
            product(
                like,
                False,
                False,
                rows,
                widths[l],
                widths[l + 1],
                at(other, 0),
                W,
                at(value, places[l, 0]),
                widths[l],
                at(one, 0),
                W,
            )
    product(
        like,
        False,
        False,
        rows,
        widths[0],
        widths[1],
        at(other, 0),
        W,
        at(value, places[0, 0]),
        widths[0],
        at(x_bar, 0),
        x_bar.shape[1],
    )


@part
def share(total, thread, threads):
    """(first, count) of a thread's part of `total` things."""
    first = total * thread // threads
    return first, total * (thread + 1) // threads - first


@part
def span(widths, places, l, kind, thread, threads):
    """The elements of a thread's outputs in layer l's weight (kind 0), bias (1), gain (2) or offset (3)."""
    first, count = share(widths[l + 1], thread, threads)
    each = widths[l] if kind == 0 else 1
    begin = places[l, kind] + first * each
    return slice(begin, begin + count * each)


@part
def weights(gradient, widths, places, norm, x, x_stride, out_bar, h, y, sums, work, thread, threads):
    """A thread's outputs of every layer's weight gradient, and of the sums (threads, L+1, 3, W) of all threads.

    `work` has room for 32 W elements.
    """
    like, W, layers, rows = gradient[0], h.shape[2], len(widths) - 2, h.shape[1]
    for l in range(layers + 1):
        o, outputs = share(widths[l + 1], thread, threads)
        if outputs == 0:
            continue
        bar, stride = (at(h, l * rows * W + o), W) if l < layers else (at(out_bar, o), out_bar.shape[1])
        if widths[l] < 32:
            # few inputs: the library is at its best with the transpose
            few = work[: widths[l] * outputs].reshape(widths[l], outputs)
            product(like, True, False, widths[l], outputs, rows, x, x_stride, bar, stride, at(few, 0), outputs)
            for i in range(outputs):
                for j in range(widths[l]):
                    gradient[places[l, 0] + (o + i) * widths[l] + j] = few[j, i]
        else:
            product(
                like,
                True,
                False,
                outputs,
                widths[l],
                rows,
                bar,
                stride,
                x,
                x_stride,
                at(gradient, places[l, 0] + o * widths[l]),
                widths[l],
            )
        for kind in range(3 if norm and l < layers else 1):
            for j in range(o, o + outputs):
                total = sums[0, l, kind, j]
                for t in range(1, threads):
                    total += sums[t, l, kind, j]
                gradient[places[l, 1 + kind] + j] = total
        if l < layers:
            x, x_stride = at(y, l * rows * W), W


@part
def adam(value, gradient, first_moment, second_moment, widths, places, norm, lr, steps, thread, threads):
    """Adam (β 0.9, 0.999, ε 1e-8), its update number `steps` (from 1), on what belongs to the thread's outputs."""
    real = value.dtype.type
    rate, root = real(lr / (1 - 0.9**steps)), real(1 / np.sqrt(1 - 0.999**steps))
    for l in range(len(widths) - 1):
        for kind in range(4 if norm and l < len(widths) - 2 else 2):
            mine = span(widths, places, l, kind, thread, threads)
            p, g, m, v = value[mine], gradient[mine], first_moment[mine], second_moment[mine]
            for i in range(len(p)):
                m[i] += real(0.1) * (g[i] - m[i])
                v[i] = real(0.999) * v[i] + real(0.001) * g[i] * g[i]
                p[i] -= rate * m[i] / (np.sqrt(v[i]) * root + real(1e-8))


@part
def follow(target, value, widths, places, norm, rate, thread, threads):
    """target ← target + rate (value − target) on what belongs to the thread's outputs."""
    rate = target.dtype.type(rate)
    for l in range(len(widths) - 1):
        for kind in range(4 if norm and l < len(widths) - 2 else 2):
            mine = span(widths, places, l, kind, thread, threads)
            t, p = target[mine], value[mine]
            for i in range(len(p)):
                t[i] += rate * (p[i] - t[i])


def places_of(mlp: MLP, flat: Flat) -> np.ndarray:
    """Where `flat` holds the parameters of `mlp`: (L+1, 4) offsets of weight, bias, gain and offset; stacked: (n, L+1, 4)."""
    start, stack = flat.value.data_ptr(), 1 if mlp.stack is None else mlp.stack
    places = np.zeros((stack, len(mlp.layers), 4), dtype=np.int64)
    for l, layer in enumerate(mlp.layers):
        norm = [mlp.norms[l].weight, mlp.norms[l].bias] if mlp.norms and l < len(mlp.hidden) else []
        for kind, parameter in enumerate([layer.weight, layer.bias, *norm]):
            first = (parameter.data_ptr() - start) // parameter.element_size()
            places[:, l, kind] = first + np.arange(stack) * (parameter.numel() // stack)
    return places[0] if mlp.stack is None else places
