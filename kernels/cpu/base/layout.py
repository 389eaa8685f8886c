"""How compiled code sees a network: NamedTuples of sizes, addresses and offsets.

Addresses are bytes, sizes and offsets count elements. A hidden layer's width is padded to whole vectors (`padded`); weights
whose widths are whole vectors already are read where torch keeps them.

A tape of `J` calls with R rows holds, for every array of a call (width w, offset o per row), its J copies side by side:
copy j starts at (o·J + j·w)·R. So the rows of one layer over all calls are one matrix.
"""

from typing import NamedTuple

import numpy as np
import torch

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.rows import WORD, reader
from jacrec.kernels.cpu.base.tiles import size_of

DTYPES = {torch.float32: np.float32, torch.float64: np.float64}
"""the element types that kernels are compiled for"""
ACTIVATION_CODES = {"relu": 0, "silu": 1, "mish": 2, "tanh": 3, "gelu": 4}
RELU, SILU, MISH, TANH_HIDDEN, GELU = range(5)


class Network(NamedTuple):
    """A network, or one of a stack of networks."""

    layers: int  # address of its hidden layers' rows, see `Layer`
    depth: int  # hidden layers
    activation: int  # see `ACTIVATION_CODES`
    norm: int  # whether every hidden layer ends with a LayerNorm
    eps: int  # address of its ε, float64
    residual: int
    tanh: int  # whether the output goes through tanh
    inputs: int
    outputs: int
    widest: int  # the widest layer, padded
    tape: int  # elements of a tape for each row and call
    bars: int  # elements of the cotangents z̄ of all layers for each row and call
    first: int  # address of the first layer's weight, transposed: (inputs, padded width)
    last_weight: int
    last_bias: int
    last_bar: int  # offset of the output layer's z̄
    gradient: int  # length of the vector of parameter gradients
    first_gradient: int  # offsets in that vector; this one is transposed as `first` is
    last_weight_gradient: int
    last_bias_gradient: int
    spare: int  # elements for each row behind a tape that holds only the signs of a ReLU's inputs, see `hidden`; else 0
    turned: int  # address of the hidden layers' weights behind the first as `mlp.turn_weights` writes them; 0: there are none


class Layer(NamedTuple):
    """A hidden layer."""

    width: int
    padded: int
    bits: int  # elements of a row's signs on a tape that holds nothing else
    weight: int
    bias: int
    gain: int
    shift: int
    gate: int  # offsets on the tape
    output: int
    hat: int
    inv_std: int
    bar: int  # offset of its z̄
    weight_gradient: int  # offsets in the vector of parameter gradients
    bias_gradient: int
    gain_gradient: int
    shift_gradient: int


class Stack(NamedTuple):
    """Networks of one architecture, each a row of `Network` and its `Layer`s."""

    rows: int  # address of the first row
    count: int
    length: int  # int64 in a row


NETWORK, LAYER = len(Network._fields), len(Layer._fields)
read_network, read_layer = reader(Network), reader(Layer)


@part
def network_of(stack, n):
    """Network n of a stack."""
    return read_network(stack.rows + n * stack.length * WORD)


@part
def layer_of(net, i):
    """Hidden layer i of a network."""
    return read_layer(net.layers + i * LAYER * WORD)


@part
def slot(like, base, offset, width, J, j, R):
    """The address of copy j of an array with R rows on a tape of J copies."""
    return base + (offset * J + j * width) * R * size_of(like)


@part
def hidden(like, net, tape, J, j, R, i):
    """The address of hidden layer i's products, (R, padded width), in call j.

    Where the tape holds signs, they lie behind it, in four buffers: the first layer alternates between two, since a thread of a
    team may begin the next call while another still reads the last layer's.
    """
    layer = layer_of(net, i)
    if net.spare == 0:
        return slot(like, tape, layer.gate, layer.padded, J, j, R)
    return tape + (net.tape * J + (i % 2 if i else 2 + j % 2) * net.widest) * R * size_of(like)
