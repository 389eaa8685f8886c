"""Modules as the rows of int64 that the CPU kernels read. Parameters are read where they lie; the first layers are copied, and
weights whose rows are no whole vectors.

A plan holds what its addresses point to; a `Refresher` brings the copies up to date.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jacrec.engine.jacobians.chain import level_parts
from jacrec.kernels.cpu.base import layout as at
from jacrec.kernels.cpu.base.host import VECTOR_BYTES, entry
from jacrec.kernels.cpu.gradient import copies
from jacrec.kernels.cpu.gradient import transition as chains
from jacrec.models.dynamics import ChainDynamics, DeterministicDynamics, EnsembleDynamics, MultiStepDynamics
from jacrec.models.networks import MLP, Affine

Served = ChainDynamics | DeterministicDynamics | EnsembleDynamics | MultiStepDynamics
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
    copies: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """what was copied out of parameters and buffers: (source, copy), matrices"""
    sources: dict[int, Tensor] = field(default_factory=dict)
    """the parameters and buffers that something was copied or computed from, by id"""
    table: "LevelTable | StepTable | None" = None
    """what was computed from parameters"""

    def address(self, tensor: Tensor) -> int:
        """Where a contiguous form of the tensor lies."""
        if tensor.is_contiguous():
            self.kept.append(tensor)
            return tensor.data_ptr()
        return self._copy(tensor.unsqueeze(0) if tensor.dim() == 1 else tensor, 0, tensor)

    def array(self, array: np.ndarray) -> int:
        """Where a contiguous numpy array lies."""
        self.kept.append(array)
        return array.ctypes.data

    def wide(self, weight: Tensor) -> int:
        """A weight (..., out, in) with `in` padded to whole vectors: itself where it is already."""
        missing = padded(weight.shape[-1], self.dtype) - weight.shape[-1]
        return self._copy(weight, missing, weight) if missing else self.address(weight)

    def transposed(self, weight: Tensor, of: Tensor | None = None) -> int:
        """A weight (..., out, in), or some columns `of` one, as (..., in, padded out)."""
        return self._copy(weight.mT, padded(weight.shape[-2], self.dtype) - weight.shape[-2], weight if of is None else of)

    def _copy(self, source: Tensor, missing: int, of: Tensor) -> int:
        """Where a copy of the matrices lies whose rows end with `missing` zeros."""
        source = source.detach()
        copy = source.new_zeros(*source.shape[:-1], source.shape[-1] + missing)
        target = copy[..., : source.shape[-1]]
        target.copy_(source)
        self.copies.append((source, target))
        self.sources[id(of)] = of
        return self.address(copy)

    def network(self, mlp: MLP, first: Tensor | None = None) -> np.ndarray:
        """One row per network of the stack, (n, length); with the first layer's weight (n, w, in) or (w, in), transposed."""
        dtype, size = self.dtype, self.dtype.itemsize
        shape = Shape(mlp.in_dim, mlp.out_dim, mlp.hidden, mlp.activation, bool(mlp.norms), mlp.residual, mlp.tanh_output)
        row = template(shape, dtype).copy()
        layers: list[Affine] = list(mlp.layers)
        stack = layers[0].weight.shape[0] if layers[0].weight.dim() == 3 else 1
        step = np.zeros_like(row)  # bytes from one network of the stack to the next

        def put(index: int, address: int, count: int) -> None:
            row[index], step[index] = address, count * size

        pads = [padded(w, dtype) for w in mlp.hidden]
        for i, (width, layer) in enumerate(zip(mlp.hidden, layers, strict=False)):
            here = at.LAYERS + i * at.LAYER
            if i:
                put(here + at.WEIGHT, self.wide(layer.weight), width * pads[i - 1])
            put(here + at.BIAS, self.address(layer.bias), width)
        for i, norm in enumerate(mlp.norms):
            here = at.LAYERS + i * at.LAYER
            put(here + at.GAIN, self.address(norm.weight), mlp.hidden[i])
            put(here + at.SHIFT, self.address(norm.bias), mlp.hidden[i])
        put(at.LAST_WEIGHT, self.wide(layers[-1].weight), mlp.out_dim * pads[-1])
        put(at.LAST_BIAS, self.address(layers[-1].bias), mlp.out_dim)
        if first is not None:
            put(at.FIRST, self.transposed(first), first.shape[-1] * pads[0])
        return row[None] if stack == 1 else row + np.arange(stack)[:, None] * step


class LevelTable:
    """`jacrec.engine.jacobians.chain.level_table` of some dynamics, and what it is computed from."""

    def __init__(self, f: ChainDynamics):
        self.W_t, self.b, self.features = level_parts(f)
        self.value = torch.addmm(self.b, self.features, self.W_t)

    def compute(self) -> None:
        """Again, in place."""
        # copied whole: another thread may be reading, and a product in place passes through other values
        self.value.copy_(torch.addmm(self.b, self.features, self.W_t))


class StepTable:
    """The rows W_j + b of a multi-step model's first layer (horizon, w)."""

    def __init__(self, f: MultiStepDynamics):
        self.f = f
        self.value = f.split()[2].detach().contiguous()

    def compute(self) -> None:
        """Again, in place."""
        self.value.copy_(self.f.split()[2])


class Refresher:
    """Makes copies again before they are read.

    Those of `changing`, a policy's, every time, in compiled code; those of `resting`, a world's, only where a comparison in
    compiled code finds that what they were made from has changed: what is not written stays in the caches of all cores.
    """

    def __init__(self, changing: Plan, resting: Plan):
        self.resting = resting
        sources = [x.detach() for x in resting.sources.values()]
        sources = [x.unsqueeze(0) if x.dim() == 1 else x for x in sources]
        self.seen = [(x, x.clone(memory_format=torch.contiguous_format)) for x in sources]
        rows = [(x.view(1, -1), seen.view(1, -1)) if x.is_contiguous() else (x, seen) for x, seen in self.seen]
        self.job = copies.job(changing.copies, rows, changing)
        self.function = entry(copies.copy_again, DTYPES[changing.dtype]).ctypes

    def __call__(self) -> None:
        job = self.job.copy()  # threads that share the plan must not answer each other's question
        self.function(job.ctypes.data)
        if not job[copies.CHANGED]:
            return
        for source, copy in self.resting.copies:
            copy.copy_(source)
        if self.resting.table is not None:
            self.resting.table.compute()
        # last: until the copies are right, every thread has to find out that they are not
        for source, seen in self.seen:
            seen.copy_(source)


class Shape(NamedTuple):
    """What the sizes and offsets of a network's row depend on."""

    in_dim: int
    out_dim: int
    hidden: tuple[int, ...]
    activation: str
    norm: bool
    residual: bool
    tanh_output: bool


@cache
def template(shape: Shape, dtype: torch.dtype) -> np.ndarray:
    """A network's row without its addresses."""
    pads = [padded(w, dtype) for w in shape.hidden]
    row = np.zeros(at.LAYERS + len(pads) * at.LAYER, dtype=np.int64)
    row[at.DEPTH], row[at.ACTIVATION] = len(pads), at.ACTIVATION_CODES[shape.activation]
    row[at.NORM], row[at.RESIDUAL], row[at.TANH] = shape.norm, shape.residual, shape.tanh_output
    row[at.IN], row[at.OUT], row[at.WIDEST] = shape.in_dim, shape.out_dim, max(pads)
    # after a ReLU alone, gate and output are one
    separate = shape.norm or shape.residual or shape.activation != "relu"
    tape = bars = grads = 0
    for i, (width, pad) in enumerate(zip(shape.hidden, pads, strict=True)):
        here = at.LAYERS + i * at.LAYER
        row[here + at.WIDTH], row[here + at.PADDED] = width, pad
        row[here + at.GATE] = row[here + at.OUTPUT] = tape
        tape += pad
        if separate:
            row[here + at.OUTPUT], tape = tape, tape + pad
        if shape.norm:
            row[here + at.HAT], row[here + at.INV_STD], tape = tape, tape + pad, tape + pad + lanes(dtype)
        row[here + at.BAR], bars = bars, bars + pad
        fan_in = pads[i - 1] * width if i else shape.in_dim * pad
        row[at.FIRST_GRADIENT if i == 0 else here + at.WEIGHT_GRADIENT], grads = grads, grads + fan_in
        for index in (at.BIAS_GRADIENT, at.GAIN_GRADIENT, at.SHIFT_GRADIENT):
            row[here + index], grads = grads, grads + pad
    row[at.LAST_BAR], bars = bars, bars + shape.out_dim
    row[at.LAST_WEIGHT_GRADIENT], grads = grads, grads + shape.out_dim * pads[-1]
    row[at.LAST_BIAS_GRADIENT], grads = grads, grads + padded(shape.out_dim, dtype)
    row[at.TAPE], row[at.BARS], row[at.GRADIENT] = tape, bars, padded(grads, dtype)
    return row


def describe_chain(plan: Plan, f: Served, table: Tensor | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The chain's row, its coefficients (3, K), and its network's row, or its networks' (n, length).

    `table`: `level_table(f)` where the caller has it.
    """
    d, m = f.state_dim, f.action_dim
    row = np.zeros(chains.CHAIN, dtype=np.int64)
    first = denoiser_of(f).layers[0].weight
    # an ensemble's networks begin with state and action, and nothing else
    net = plan.network(denoiser_of(f), first if isinstance(f, EnsembleDynamics) else None)
    if isinstance(f, ChainDynamics):
        W_u, W_sa, _, b = f.denoiser.split()
        steps = np.array([f.c_u, f.c_net, f.sigma])
        row[chains.HAS_LATENT], row[chains.FROM_LATENT], row[chains.NOISES] = True, plan.transposed(W_u, first), f.noises
        if table is None:
            plan.table = LevelTable(f)
            plan.sources[id(b)], table = b, plan.table.value
        row[chains.TABLE], row[chains.TABLE_STRIDE] = plan.address(table), W_u.shape[0]
    elif isinstance(f, EnsembleDynamics):
        W_sa, steps = None, np.array([[0.0], [1.0], [0.0]])
        row[chains.MEMBERS], row[chains.NOISES], row[chains.SCALED] = f.members, f.noise_shape[0], True
    elif isinstance(f, MultiStepDynamics):
        W_sa, steps = first[:, :d], np.array([[0.0], [1.0], [0.0]])
        row[chains.NOISES] = row[chains.SCALED] = f.noise_shape[0]
        row[chains.FROM_ACTIONS] = plan.transposed(first[:, d : d + f.horizon * m], first)
        plan.table, bias = StepTable(f), f.mlp.layers[0].bias
        plan.sources[id(bias)] = bias
        row[chains.TABLE], row[chains.TABLE_STRIDE] = plan.address(plan.table.value), first.shape[0]
    else:
        W_sa, steps = first, np.array([[0.0], [1.0], [0.0]])
        row[chains.TABLE] = plan.address(f.mlp.layers[0].bias)
    row[chains.STATE_DIM], row[chains.ACTION_DIM], row[chains.STEPS] = d, m, steps.shape[1]
    # a multi-step model's displacements are taken from s_0
    row[chains.DIFFERENCE] = not isinstance(f, MultiStepDynamics) and f.target == "difference"
    if W_sa is not None:
        row[chains.FROM_INPUT] = plan.transposed(W_sa, first)
    for index, name in (
        (chains.STATE_MEAN, "state_mean"),
        (chains.STATE_STD, "state_std"),
        (chains.OUT_MEAN, "out_mean"),
        (chains.OUT_STD, "out_std"),
    ):
        row[index] = plan.address(getattr(f, name))
    return row, steps.astype(DTYPES[plan.dtype]), net


def denoiser_of(f: Served) -> MLP:
    """The network that the dynamics call K times, or once, or a stack of networks."""
    return f.denoiser.mlp if isinstance(f, ChainDynamics) else f.mlp
