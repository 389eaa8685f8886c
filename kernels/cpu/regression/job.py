"""The job of a step: rows of int64 that Python writes and compiled code reads. Addresses are bytes, sizes count elements.

Matrices are row-major. Those of a batch have a row for every example, `stride` elements apart, of which `padded` are used, with
zeros behind the width. A matrix in panels has its columns in groups of `PANEL` vectors, each a matrix of its own: products read
it from few pages of memory.
"""

from typing import NamedTuple

from jacrec.kernels.cpu.base.host import ACCUMULATORS, part
from jacrec.kernels.cpu.base.rows import WORD, reader

PANEL = ACCUMULATORS // 4
"""vectors of a panel: as wide as the tiles of `axpy_many`"""
GRADIENT_ROWS = 64
"""rows of the batch that a weight's gradient is summed over at a time: they stay in a core's cache"""
STRIP = 64
"""rows whose sums are kept apart, so that no sum depends on the number of threads"""
LR, STEPS, MAX_NORM, AVERAGING = range(4)
"""what changes from step to step, in float64; the count of steps is Adam's, from 1"""


class Layer(NamedTuple):
    """A layer, its batch's matrices and its gradients. The last one has no LayerNorm, and its prediction and error in `bar`."""

    inputs: int
    outputs: int
    padded: int  # outputs, rounded up to whole vectors
    stride: int
    skip: int  # whether the input is added to the output
    weight: int  # parameters, in the network's vector
    bias: int
    gain: int
    shift: int
    weight_bar: int  # their gradients
    bias_bar: int
    gain_bar: int
    shift_bar: int
    turned: int  # the weight, transposed: (inputs, padded) in panels
    panels: int  # the weight, (outputs, inputs), in panels; 0 where it is small, and read as it lies
    gate: int  # (B, stride): the slope of the activation; for ReLU its value
    out: int  # (B, stride): may be the same matrix
    hat: int  # (B, stride): LayerNorm's x̂
    inv_std: int  # (B,): and 1/σ
    bar: int  # (B, stride): z̄
    sums: int  # (strips, 3, padded): gradients of bias, gain and shift from each strip of rows
    squares: int  # (outputs,), float64: sums of squares of each output's gradients


class Job(NamedTuple):
    """One thread's part of a step on B rows."""

    thread: int
    threads: int
    counter: int  # the barriers'
    rows: int  # B
    block: int  # rows whose values and cotangents are computed at a time, a multiple of `STRIP`
    depth: int  # hidden layers
    layers: int  # the rows of depth + 1 layers
    activation: int  # see `jacrec.kernels.cpu.base.layout.ACTIVATION_CODES`
    norm: int  # whether every hidden layer ends with a LayerNorm
    eps: int  # address of its ε, float64
    source: int  # the row of a `jacrec.kernels.cpu.regression.gather.Source`
    x: int  # (B, inputs)
    goal: int  # (B, outputs)
    losses: int  # (strips,), float64: sums of squared errors
    rule: int  # see above
    length: int  # elements of the vectors below
    value: int
    gradient: int
    first_moment: int
    second_moment: int
    averaged: int  # 0: none
    kept: int  # (block, widest stride), of this thread
    bars: int  # (widest, GRADIENT_ROWS), of this thread: z̄ of some rows, transposed


read_job, read_layer = reader(Job), reader(Layer)
LAYER = len(Layer._fields)


@part
def layer_of(job, l):
    """Layer l."""
    return read_layer(job.layers + l * LAYER * WORD)
