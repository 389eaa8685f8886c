"""Modules as the rows that compiled code reads.

Parameters are read where they lie. First layers, and weights whose rows are not whole vectors, are copied.
"""

from dataclasses import dataclass, field
from functools import cache
from itertools import chain as chained
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jacrec.engine.jacobians.chain import level_parts
from jacrec.kernels.cpu.base.host import VECTOR_BYTES
from jacrec.kernels.cpu.base.layout import ACTIVATION_CODES, DTYPES, LAYER, NETWORK, Layer, Network, Stack
from jacrec.kernels.cpu.base.rows import WORD
from jacrec.kernels.cpu.base.tiles import BIT_BYTES
from jacrec.kernels.cpu.gradient.transition import Chain
from jacrec.models.dynamics import ChainDynamics, DeterministicDynamics, EnsembleDynamics, MultiStepDynamics
from jacrec.models.mlp import ParallelMLP
from jacrec.models.networks import MLP, Affine

Served = ChainDynamics | DeterministicDynamics | EnsembleDynamics | MultiStepDynamics


def lanes(dtype: torch.dtype) -> int:
    """Numbers per vector register."""
    return VECTOR_BYTES // dtype.itemsize


def padded(width: int, dtype: torch.dtype) -> int:
    """The width rounded up to whole vectors."""
    return -(-width // lanes(dtype)) * lanes(dtype)


class LevelTable:
    """`jacrec.engine.jacobians.chain.level_table` of a chain, (K, w), kept with what it is computed from."""

    def __init__(self, f: ChainDynamics):
        self.W_t, self.b, self.features = level_parts(f)
        self.value = torch.addmm(self.b, self.features, self.W_t)

    def update(self) -> None:
        """Recompute in place."""
        # copied in one piece: another thread may be reading, and a product in place passes through other values
        self.value.copy_(torch.addmm(self.b, self.features, self.W_t))


class StepTable:
    """The rows W_j + b of a multi-step model's first layer, (horizon, w)."""

    def __init__(self, f: MultiStepDynamics):
        self.d, self.inputs, self.first = f.state_dim, f.horizon * f.action_dim, f.mlp.layers[0]
        self.value = self._rows().contiguous()

    def _rows(self) -> Tensor:
        weight, bias = (x.detach() for x in (self.first.weight, self.first.bias))
        return weight[:, self.d + self.inputs :].mT + bias

    def update(self) -> None:
        """Recompute in place."""
        self.value.copy_(self._rows())


@dataclass
class Addresses:
    """Addresses of tensors and arrays, which are kept alive, and of copies in another layout."""

    dtype: torch.dtype
    kept: list = field(default_factory=list)
    copies: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """copies of parameters and buffers: (source, copy), matrices"""
    sources: dict[int, Tensor] = field(default_factory=dict)
    """the parameters and buffers that something was copied or computed from, by id"""
    table: LevelTable | StepTable | None = None
    """what was computed from parameters"""

    def tensor(self, tensor: Tensor) -> int:
        """The address of the tensor, or of a contiguous copy."""
        if tensor.is_contiguous():
            self.kept.append(tensor)
            return tensor.data_ptr()
        return self._copy(tensor.unsqueeze(0) if tensor.dim() == 1 else tensor, 0, tensor)

    def array(self, array: np.ndarray) -> int:
        """The address of a contiguous numpy array."""
        self.kept.append(array)
        return array.ctypes.data

    def wide(self, weight: Tensor) -> int:
        """A weight (..., out, in) with `in` padded to whole vectors; not copied if it is a multiple of them."""
        missing = padded(weight.shape[-1], self.dtype) - weight.shape[-1]
        return self._copy(weight, missing, weight) if missing else self.tensor(weight)

    def transposed(self, weight: Tensor, of: Tensor | None = None) -> int:
        """A weight (..., out, in), or some columns `of` one, as (..., in, padded out)."""
        return self._copy(weight.mT, padded(weight.shape[-2], self.dtype) - weight.shape[-2], weight if of is None else of)

    def _copy(self, source: Tensor, missing: int, of: Tensor) -> int:
        """The address of a copy of matrices whose rows are extended by `missing` zeros."""
        source = source.detach()
        copy = source.new_zeros(*source.shape[:-1], source.shape[-1] + missing)
        target = copy[..., : source.shape[-1]]
        target.copy_(source)
        self.copies.append((source, target))
        self.sources[id(of)] = of
        return self.tensor(copy)

    def network(self, mlp: MLP, *, whole: bool = True, signs: bool = False) -> "Rows":
        """The networks of a stack.

        Args:
            whole: whether the first layer's weight is read as a whole.
            signs: whether a tape of ReLUs alone shall hold their slopes as bits, for networks whose parameters do not move.
        """
        parts = list(mlp.networks) if isinstance(mlp, ParallelMLP) else [mlp]
        rows = np.concatenate([self._rows(one, whole, signs) for one in parts])
        rows[:, position("layers")] = self.array(rows) + (np.arange(len(rows)) * rows.shape[1] + NETWORK) * WORD
        return Rows(rows)

    def _rows(self, mlp: MLP, whole: bool, signs: bool) -> np.ndarray:
        """The rows of a stack's networks, but for the addresses of their layers' rows."""
        size = self.dtype.itemsize
        norm, relu = bool(mlp.norms), mlp.activation == "relu"
        signs = signs and relu and not norm and not mlp.residual
        shape = Shape(mlp.in_dim, mlp.out_dim, tuple(mlp.hidden), mlp.activation, norm, mlp.residual, mlp.tanh_output, signs)
        row = template(shape, self.dtype).copy()
        layers: list[Affine] = list(mlp.layers)
        stack = layers[0].weight.shape[0] if layers[0].weight.dim() == 3 else 1
        step = np.zeros_like(row)  # bytes from one network of the stack to the next

        def put(index: int, address: int, count: int) -> None:
            row[index], step[index] = address, count * size

        pads = [padded(w, self.dtype) for w in mlp.hidden]
        for i, (width, layer) in enumerate(zip(mlp.hidden, layers, strict=False)):
            if i:
                put(position("weight", i), self.wide(layer.weight), width * pads[i - 1])
            put(position("bias", i), self.tensor(layer.bias), width)
        for i, norm in enumerate(mlp.norms):
            put(position("gain", i), self.tensor(norm.weight), mlp.hidden[i])
            put(position("shift", i), self.tensor(norm.bias), mlp.hidden[i])
        put(position("last_weight"), self.wide(layers[-1].weight), mlp.out_dim * pads[-1])
        put(position("last_bias"), self.tensor(layers[-1].bias), mlp.out_dim)
        if whole:
            put(position("first"), self.transposed(layers[0].weight), mlp.in_dim * pads[0])
        if mlp.norms:
            put(position("eps"), self.array(np.array([mlp.norms[0].eps])), 0)
        return row[None] + np.arange(stack)[:, None] * step


class Rows:
    """A stack's networks as compiled code reads them: (n, length) int64."""

    def __init__(self, rows: np.ndarray):
        self.rows = rows
        self.stack = Stack(rows.ctypes.data, *rows.shape)
        first = rows[0].tolist()
        self.network = Network(*first[:NETWORK])
        """the first one"""
        self.layers = [Layer(*first[i : i + LAYER]) for i in range(NETWORK, len(first), LAYER)]


@cache
def position(name: str, layer: int | None = None) -> int:
    """Where a field of a network, or of one of its hidden layers, lies in the network's row."""
    return Network._fields.index(name) if layer is None else NETWORK + layer * LAYER + Layer._fields.index(name)


class Shape(NamedTuple):
    """What the sizes and offsets of a network's row depend on."""

    in_dim: int
    out_dim: int
    hidden: tuple[int, ...]
    activation: str
    norm: bool
    residual: bool
    tanh_output: bool
    signs: bool


@cache
def template(shape: Shape, dtype: torch.dtype) -> np.ndarray:
    """A network's row without its addresses."""
    pads = [padded(w, dtype) for w in shape.hidden]
    # after a ReLU alone, gate and output are one array
    separate = shape.norm or shape.residual or shape.activation != "relu"
    tape = bars = grads = first_gradient = 0
    layers = []
    for i, (width, pad) in enumerate(zip(shape.hidden, pads, strict=True)):
        layer = dict.fromkeys(Layer._fields, 0) | {"width": width, "padded": pad, "gate": tape, "output": tape, "bar": bars}
        layer["bits"] = -(-pad // lanes(dtype) * BIT_BYTES // dtype.itemsize)
        tape, bars = tape + (layer["bits"] if shape.signs else pad), bars + pad
        if separate:
            layer["output"], tape = tape, tape + pad
        if shape.norm:
            layer["hat"], layer["inv_std"], tape = tape, tape + pad, tape + pad + lanes(dtype)
        if i == 0:
            first_gradient, grads = grads, grads + shape.in_dim * pad
        else:
            layer["weight_gradient"], grads = grads, grads + pads[i - 1] * width
        for name in ("bias_gradient", "gain_gradient", "shift_gradient"):
            layer[name], grads = grads, grads + pad
        layers.append(Layer(**layer))
    last_weight_gradient, grads = grads, grads + shape.out_dim * pads[-1]
    last_bias_gradient, grads = grads, grads + padded(shape.out_dim, dtype)
    network = Network(
        layers=0,
        depth=len(pads),
        activation=ACTIVATION_CODES[shape.activation],
        norm=shape.norm,
        eps=0,
        residual=shape.residual,
        tanh=shape.tanh_output,
        inputs=shape.in_dim,
        outputs=shape.out_dim,
        widest=max(pads),
        tape=tape,
        bars=bars + shape.out_dim,
        first=0,
        last_weight=0,
        last_bias=0,
        last_bar=bars,
        gradient=padded(grads, dtype),
        first_gradient=first_gradient,
        last_weight_gradient=last_weight_gradient,
        last_bias_gradient=last_bias_gradient,
        spare=4 * max(pads) if shape.signs else 0,
        turned=0,
    )
    return np.array([int(x) for x in (*network, *chained.from_iterable(layers))], dtype=np.int64)


def describe_dynamics(own: Addresses, f: Served, table: Tensor | None = None, *, signs: bool = False) -> tuple[Chain, Rows]:
    """The dynamics and their networks. `table`: `level_table(f)` if the caller has it; signs: as in `Addresses.network`."""
    d, m = f.state_dim, f.action_dim
    net = dynamics_network(f)
    first = net.layers[0].weight
    # an ensemble's networks take state and action, and nothing else
    rows = own.network(net, whole=isinstance(f, EnsembleDynamics), signs=signs)
    fields = dict.fromkeys(Chain._fields, 0)
    coefficients: tuple = ([0.0], [1.0], [0.0])
    if isinstance(f, ChainDynamics):
        W_u, W_sa, _, b = f.denoiser.split()
        coefficients = f.c_u, f.c_net, f.sigma
        if table is None:
            own.table = LevelTable(f)
            own.sources[id(b)], table = b, own.table.value
        fields |= {"latent": True, "from_latent": own.transposed(W_u, first), "noises": f.noises}
        fields |= {"from_input": own.transposed(W_sa, first), "table": own.tensor(table), "table_stride": W_u.shape[0]}
    elif isinstance(f, EnsembleDynamics):
        fields |= {"members": f.members, "noises": f.noise_shape[0], "scaled": True}
    elif isinstance(f, MultiStepDynamics):
        own.table, bias = StepTable(f), f.mlp.layers[0].bias
        own.sources[id(bias)] = bias
        fields |= {"noises": f.noise_shape[0], "scaled": f.noise_shape[0]}
        fields |= {"from_input": own.transposed(first[:, :d], first)}
        fields |= {"from_actions": own.transposed(first[:, d : d + f.horizon * m], first)}
        fields |= {"table": own.tensor(own.table.value), "table_stride": first.shape[0]}
    else:
        fields |= {"from_input": own.transposed(first), "table": own.tensor(f.mlp.layers[0].bias)}
    steps = np.array(coefficients).astype(DTYPES[own.dtype])
    c_u = own.array(steps)
    fields |= {"d": d, "m": m, "K": steps.shape[1]}
    fields |= {name: c_u + i * steps.strides[0] for i, name in enumerate(("c_u", "c_net", "sigma"))}
    # a multi-step model's displacements are taken from s_0
    fields["difference"] = not isinstance(f, MultiStepDynamics) and f.target == "difference"
    fields |= {name: own.tensor(getattr(f, name)) for name in ("state_mean", "state_std", "out_mean", "out_std")}
    return Chain(**fields), rows


def dynamics_network(f: Served) -> MLP:
    """The network that the dynamics call K times or once, or a stack of networks."""
    return f.denoiser.mlp if isinstance(f, ChainDynamics) else f.mlp
