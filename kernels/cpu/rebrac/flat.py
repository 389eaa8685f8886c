"""Adam and target averaging on one thread's share of a flat vector of parameters: twins of `jacrec.training.flat`.

A network lies in a flat vector as `Net` says. A thread's share is some outputs of every layer, so that it updates the
parameters whose gradients it has just computed.
"""

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from jacrec.kernels.cpu.base.host import part
from jacrec.models.networks import MLP


class Net(NamedTuple):
    """A network in a flat vector, in compiled code: L ReLU layers [with LayerNorm each] and a last one [with tanh]."""

    value: Any  # (P,): the vector
    widths: Any  # (L + 2,): from input to output
    offsets: Any  # (L + 1, 4): offsets of weight, bias, gain and offset of each layer; the last has no gain and offset
    norm: bool
    tanh: bool


class OptimiserState(NamedTuple):
    """Vectors with the layout of a network's parameters that an update changes."""

    target: Any
    gradient: Any
    first_moment: Any
    second_moment: Any


def offsets_of(mlp: MLP, value: Tensor) -> np.ndarray:
    """Where the parameters of `mlp` lie in the vector `value`: (n, L + 1, 4) offsets for a stack of n, 1 if there is none."""
    start, stack = value.data_ptr(), 1 if mlp.stack is None else mlp.stack
    offsets = np.zeros((stack, len(mlp.layers), 4), dtype=np.int64)
    for l, layer in enumerate(mlp.layers):
        norm = [mlp.norms[l].weight, mlp.norms[l].bias] if mlp.norms and l < len(mlp.hidden) else []
        for kind, parameter in enumerate([layer.weight, layer.bias, *norm]):
            first = (parameter.data_ptr() - start) // parameter.element_size()
            offsets[:, l, kind] = first + np.arange(stack) * (parameter.numel() // stack)
    return offsets


@part
def share(total, thread, threads):
    """(first, count) of a thread's part of `total` things."""
    first = total * thread // threads
    return first, total * (thread + 1) // threads - first


@part
def kinds(net, l):
    """How many kinds of parameters layer l has: weight, bias[, gain, offset]."""
    return 4 if net.norm and l < len(net.widths) - 2 else 2


@part
def span(net, l, kind, thread, threads):
    """The elements of a thread's outputs in layer l's weight (kind 0), bias (1), gain (2) or offset (3)."""
    first, count = share(net.widths[l + 1], thread, threads)
    each = net.widths[l] if kind == 0 else 1
    begin = net.offsets[l, kind] + first * each
    return slice(begin, begin + count * each)


@part
def adam(net, state, lr, steps, thread, threads):
    """Adam (β 0.9, 0.999, ε 1e-8), its update number `steps` (from 1), for the thread's outputs."""
    real = net.value.dtype.type
    rate, root = real(lr / (1 - 0.9**steps)), real(1 / np.sqrt(1 - 0.999**steps))
    for l in range(len(net.widths) - 1):
        for kind in range(kinds(net, l)):
            mine = span(net, l, kind, thread, threads)
            p, g, m, v = net.value[mine], state.gradient[mine], state.first_moment[mine], state.second_moment[mine]
            for i in range(len(p)):
                m[i] += real(0.1) * (g[i] - m[i])
                v[i] = real(0.999) * v[i] + real(0.001) * g[i] * g[i]
                p[i] -= rate * m[i] / (np.sqrt(v[i]) * root + real(1e-8))


@part
def update_target(net, state, rate, thread, threads):
    """target ← target + rate (value − target) for the thread's outputs."""
    rate = net.value.dtype.type(rate)
    for l in range(len(net.widths) - 1):
        for kind in range(kinds(net, l)):
            mine = span(net, l, kind, thread, threads)
            t, p = state.target[mine], net.value[mine]
            for i in range(len(p)):
                t[i] += rate * (p[i] - t[i])
