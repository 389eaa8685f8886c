"""Where the gradient of each policy parameter lies, and which parameters an update moves."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jacrec.engine.jacobians.policy import PolicyNetwork
from jacrec.kernels.cpu.gradient.addresses import Rows, padded
from jacrec.kernels.cpu.gradient.job import Piece


class GradientPiece(NamedTuple):
    """A parameter's gradient in a policy's vector: a strided view."""

    name: str
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Moved(NamedTuple):
    """The parameters of ψ that an update moves."""

    pieces: np.ndarray  # rows of `Piece`
    address: int  # of these
    parameters: list[Tensor]


def gradient_pieces(network: PolicyNetwork, rows: Rows, dtype: torch.dtype) -> list[GradientPiece]:
    """The pieces of all parameters, in the order of the policy's `named_parameters`."""
    mlp = network.mlp
    net, pieces = rows.network, {}
    for i, layer in enumerate(mlp.layers):
        out, fan_in = layer.weight.shape[-2:]
        last = i == len(mlp.hidden)
        to_bias = net.last_bias_gradient if last else rows.layers[i].bias_gradient
        if i == 0:
            pieces["layers.0.weight"] = net.first_gradient, (out, fan_in), (1, padded(out, dtype))
        else:
            start = net.last_weight_gradient if last else rows.layers[i].weight_gradient
            pieces[f"layers.{i}.weight"] = start, (out, fan_in), (padded(fan_in, dtype), 1)
        pieces[f"layers.{i}.bias"] = to_bias, (out,), (1,)
    for i, norm in enumerate(mlp.norms):
        width = norm.weight.shape[-1]
        pieces[f"norms.{i}.weight"] = rows.layers[i].gain_gradient, (width,), (1,)
        pieces[f"norms.{i}.bias"] = rows.layers[i].shift_gradient, (width,), (1,)
    return [GradientPiece(name, *pieces[own]) for own, name in network.names().items()]


def moved(parameters: list[Tensor], pieces: list[GradientPiece]) -> Moved:
    """What an update of these parameters moves."""
    rows = [_piece(parameter, piece) for parameter, piece in zip(parameters, pieces, strict=True)]
    table = np.array(rows, dtype=np.int64).reshape(-1, len(Piece._fields))
    return Moved(table, table.ctypes.data, parameters)


def _piece(parameter: Tensor, piece: GradientPiece) -> Piece:
    own, lead = parameter.stride(), parameter.dim() - len(piece.shape)
    address, step = parameter.data_ptr(), own[0] if lead else 0
    if len(piece.shape) == 1:
        return Piece(address, step, 0, own[-1], piece.start, 0, 1, piece.shape[0])
    (rows, columns), (to_row, to_column), (row_step, column_step) = piece.shape, own[-2:], piece.strides
    if column_step != 1:  # it is transposed in the gradient
        rows, columns, to_row, to_column, row_step = columns, rows, to_column, to_row, column_step
    return Piece(address, step, to_row, to_column, piece.start, row_step, rows, columns)


def named_gradients(pieces: list[GradientPiece], vectors: Tensor, policies: int | None) -> dict[str, Tensor]:
    """The gradient by parameter name; `policies`: of a `BatchedPolicy`, whose vectors are the first rows (…, length)."""
    if policies is None:
        return {name: vectors.as_strided(shape, strides, start).contiguous() for name, start, shape, strides in pieces}
    length = vectors.shape[1]
    return {
        name: vectors.as_strided((policies, *shape), (length, *strides), start).contiguous()
        for name, start, shape, strides in pieces
    }
