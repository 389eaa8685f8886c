"""Modules as the rows of int64 that the CPU kernels read. Parameters are read where they lie; only the first layers are copied.

A plan holds what its addresses point to, and is made anew for every gradient: nothing that a training step, a
`load_state_dict` or a user's own hand changes can be missed.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from jacrec.kernels.cpu import layout as at
from jacrec.kernels.cpu.host import VECTOR_BYTES
from jacrec.networks import MLP

DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


def lanes(dtype: torch.dtype) -> int:
    """Numbers per vector register."""
    return VECTOR_BYTES // dtype.itemsize


def padded(width: int, dtype: torch.dtype) -> int:
    """The width in whole vectors."""
    return -(-width // lanes(dtype)) * lanes(dtype)


@dataclass
class Plan:
    """Collects rows and keeps alive what they point to."""

    dtype: torch.dtype
    kept: list = field(default_factory=list)

    def address(self, tensor: Tensor) -> int:
        """Where a contiguous form of the tensor lies."""
        tensor = tensor.detach().contiguous()
        self.kept.append(tensor)
        return tensor.data_ptr()

    def array(self, array: np.ndarray) -> int:
        """Where a contiguous numpy array lies."""
        self.kept.append(array)
        return array.ctypes.data

    def wide(self, weight: Tensor) -> int:
        """A weight (..., out, in) with `in` padded to whole vectors: itself where it is already."""
        missing = padded(weight.shape[-1], self.dtype) - weight.shape[-1]
        return self.address(functional.pad(weight.detach(), (0, missing)) if missing else weight)

    def transposed(self, weight: Tensor) -> int:
        """A weight (..., out, in) as (..., in, padded out)."""
        return self.wide(weight.detach().mT)

    def network(self, mlp: MLP, *, gradient: bool = False) -> np.ndarray:
        """One row per network of the stack, (n, length); with `gradient` also where parameter gradients are to go."""
        dtype, size = self.dtype, self.dtype.itemsize
        stack = mlp.layers[0].weight.shape[0] if mlp.layers[0].weight.dim() == 3 else 1
        depth, pads = len(mlp.hidden), [padded(w, dtype) for w in mlp.hidden]
        row = np.zeros(at.LAYERS + depth * at.LAYER, dtype=np.int64)
        step = np.zeros_like(row)  # bytes from one network of the stack to the next

        def put(index: int, address: int, count: int) -> None:
            row[index], step[index] = address, count * size

        row[at.DEPTH], row[at.ACTIVATION] = depth, at.ACTIVATION_CODES[mlp.activation]
        row[at.NORM], row[at.RESIDUAL], row[at.TANH] = bool(mlp.norms), mlp.residual, mlp.tanh_output
        row[at.IN], row[at.OUT], row[at.WIDEST] = mlp.in_dim, mlp.out_dim, max(pads)
        separate = bool(mlp.norms) or mlp.residual or mlp.activation != "relu"
        tape = bars = grads = 0
        for i, (width, pad) in enumerate(zip(mlp.hidden, pads, strict=True)):
            here = at.LAYERS + i * at.LAYER
            row[here + at.WIDTH], row[here + at.PADDED] = width, pad
            row[here + at.GATE] = row[here + at.OUTPUT] = tape
            tape += pad
            if separate:
                row[here + at.OUTPUT], tape = tape, tape + pad
            layer = mlp.layers[i]
            if i:
                put(here + at.WEIGHT, self.wide(layer.weight), width * pads[i - 1])
            put(here + at.BIAS, self.address(layer.bias), width)
            if mlp.norms:
                norm = mlp.norms[i]
                put(here + at.GAIN, self.address(norm.weight), width)
                put(here + at.SHIFT, self.address(norm.bias), width)
                row[here + at.HAT], row[here + at.INV_STD], tape = tape, tape + pad, tape + pad + lanes(dtype)
            row[here + at.BAR], bars = bars, bars + pad
            fan_in = pads[i - 1] * width if i else mlp.in_dim * pad
            row[at.FIRST_GRADIENT if i == 0 else here + at.WEIGHT_GRADIENT], grads = grads, grads + fan_in
            for index in (at.BIAS_GRADIENT, at.GAIN_GRADIENT, at.SHIFT_GRADIENT):
                row[here + index], grads = grads, grads + pad
        last = mlp.layers[-1]
        put(at.LAST_WEIGHT, self.wide(last.weight), mlp.out_dim * pads[-1])
        put(at.LAST_BIAS, self.address(last.bias), mlp.out_dim)
        row[at.LAST_BAR], bars = bars, bars + mlp.out_dim
        row[at.LAST_WEIGHT_GRADIENT], grads = grads, grads + mlp.out_dim * pads[-1]
        row[at.LAST_BIAS_GRADIENT], grads = grads, grads + padded(mlp.out_dim, dtype)
        row[at.TAPE], row[at.BARS], row[at.GRADIENT] = tape, bars, padded(grads, dtype) if gradient else 0
        return row + np.arange(stack)[:, None] * step

    def first(self, rows: np.ndarray, weight: Tensor) -> np.ndarray:
        """The rows with the first layer's weight (w, in) or (n, w, in), transposed."""
        stack, inputs = rows.shape[0], weight.shape[-1]
        step = inputs * padded(weight.shape[-2], self.dtype) * self.dtype.itemsize
        rows[:, at.FIRST] = self.transposed(weight) + np.arange(stack) * step
        return rows
