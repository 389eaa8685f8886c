"""Inside a kernel: a tile of particles with their tangents through the layers of an `MLP`; twin of `jacrec.engine.jacobians.mlp`.

A tile is a matrix of rows: each particle has R of them, first its value, then its tangents, then padding. One product with
a weight serves all rows. R is a power of two, so that (rows, columns) reshapes to (particles, R, columns), where a gate
computed from the value rows spreads over the tangents.

**Where activations live.** A layer of 256 to 1024 units times a tile of rows fits neither the registers nor, beside the
weights in flight, the shared memory of a multiprocessor, and Triton cannot index registers by a run-time number. So a layer
is written to a scratch buffer that belongs to the program (LD columns per row, a few ten KiB) and read back, chunk by chunk,
as the next layer's input: traffic between a multiprocessor and its L1 and L2, pipelined with the weights by the compiler.

**Why that is right.** A program is one thread block. A barrier over a block makes all its global writes before it visible
to all its reads behind it (PTX memory model: bar.sync synchronises at block scope, and asynchronous copies issued behind it
are ordered too), and the compiler moves no access over one. Hence a barrier stands after a layer has been written, before
anyone reads it; layers alternate between two buffers, so that a chunk of one layer is never written over what another
thread still reads; no two programs share a buffer. Where a chunk is rewritten in place, a barrier stands between its load
and its store, because several threads may have been given the same element.

Columns from a layer's width to the next multiple of the chunk hold zeros: reads need no mask.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportAssignmentType=false
# the language of kernels is not Python's: what a checker takes for a tl.constexpr is any value that the compiler knows

from typing import NamedTuple

import triton
import triton.language as tl

from jacrec.kernels.activation import activate, tanh


class Net(NamedTuple):
    """The structure of an `MLP`, known to the compiler."""

    hidden: tuple[int, ...]
    activation: str
    norm: bool
    residual: bool
    out: int
    eps: float
    """LayerNorm's"""

    @property
    def depth(self) -> int:
        """The number of hidden layers."""
        return len(self.hidden)


class Shape(NamedTuple):
    """The sizes of a tile, known to the compiler."""

    rows: int
    """rows of the tile: particles × R"""
    R: int
    """rows of a particle: 1 value and up to R − 1 tangents; a power of two"""
    columns: int
    """columns of a layer computed at once; a power of two, a multiple of `inner`"""
    inner: int
    """terms of an inner product per tl.dot; a power of two, at least 16 on a GPU"""
    LD: int
    """columns of a scratch row: the widest layer, rounded up to `columns`"""
    precision: str
    """tl.dot's input_precision"""


@triton.jit
def value_rows(x, R: tl.constexpr):
    """Every row replaced by its particle's value row: (rows, C) -> (rows, C)."""
    if R == 1:
        rows = x
    else:
        cube = tl.reshape(x, (x.shape[0] // R, R, x.shape[1]))
        first = (tl.arange(0, R) == 0)[None, :, None]
        value = tl.sum(tl.where(first, cube, 0.0), 1, keep_dims=True)
        rows = tl.reshape(tl.broadcast_to(value, cube.shape), x.shape)
    return rows


@triton.jit
def is_value(SHAPE: tl.constexpr):
    """Whether a row is its particle's value: (rows, 1)."""
    return (tl.arange(0, SHAPE.rows) % SHAPE.R == 0)[:, None]


@triton.jit
def at(buffer, cols, SHAPE: tl.constexpr):
    """Pointers to columns of a scratch buffer: (rows, len(cols))."""
    return buffer + tl.arange(0, SHAPE.rows)[:, None] * SHAPE.LD + cols[None, :]


@triton.jit
def small_product(
    x, weight, cols, IN: tl.constexpr, OUT: tl.constexpr, S_IN: tl.constexpr, S_OUT: tl.constexpr, SHAPE: tl.constexpr
):
    """Columns `cols` of x @ w for x in registers, (rows, C) with C >= IN; w[i, o] is at weight + i S_IN + o S_OUT."""
    i = tl.arange(0, x.shape[1])
    w = tl.load(weight + i[:, None] * S_IN + cols[None, :] * S_OUT, mask=(i < IN)[:, None] & (cols < OUT)[None, :], other=0.0)
    return tl.dot(x, w, input_precision=SHAPE.precision, out_dtype=x.dtype)


@triton.jit
def product(
    buffer,
    weight,
    n0,
    C: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    S_IN: tl.constexpr,
    S_OUT: tl.constexpr,
    SHAPE: tl.constexpr,
):
    """Columns n0 … n0 + C − 1 of x @ w for x in a scratch buffer; w as in `small_product`. (rows, C)"""
    dtype: tl.constexpr = buffer.dtype.element_ty
    ROWS: tl.constexpr = SHAPE.rows
    cols = n0 + tl.arange(0, C)
    total = tl.zeros((ROWS, C), dtype)
    for i0 in range(0, IN, SHAPE.inner):
        i = i0 + tl.arange(0, SHAPE.inner)
        x = tl.load(at(buffer, i, SHAPE))
        pointer = weight + i[:, None] * S_IN + cols[None, :] * S_OUT
        if IN % SHAPE.inner == 0 and OUT % C == 0:
            w = tl.load(pointer)
        else:
            w = tl.load(pointer, mask=(i < IN)[:, None] & (cols < OUT)[None, :], other=0.0)
        total = tl.dot(x, w, total, input_precision=SHAPE.precision, out_dtype=dtype)
    return total


@triton.jit
def gated(z, NET: tl.constexpr, SHAPE: tl.constexpr):
    """Rows of z -> rows of act: act(z) in the value rows, act'(z) ⊙ ż in the tangents; and the slope in all rows."""
    value, slope = activate(value_rows(z, SHAPE.R), NET)
    return tl.where(is_value(SHAPE), value, z * slope), slope


@triton.jit
def finish(
    z, source, target, slopes, offset, live, cols, I: tl.constexpr, NET: tl.constexpr, SHAPE: tl.constexpr, TAPED: tl.constexpr
):
    """From a chunk of hidden layer I's pre-activation rows z to its output in `target`; LayerNorm is for `normalise`.

    TAPED: the slopes go to slopes + offset + column, where `live` (rows, 1). source: the buffer of the layer's input.
    """
    rows, slope = gated(z, NET, SHAPE)
    if TAPED:
        tl.store(slopes + offset + cols[None, :], slope, mask=live & (cols < NET.hidden[I])[None, :])
    if I > 0 and NET.residual and not NET.norm and NET.hidden[I] == NET.hidden[I - 1]:
        rows += tl.load(at(source, cols, SHAPE))
    tl.store(at(target, cols, SHAPE), rows)


@triton.jit
def normalise(
    source,
    target,
    gain,
    shift,
    hats,
    inv_std,
    offset,
    live,
    I: tl.constexpr,
    NET: tl.constexpr,
    SHAPE: tl.constexpr,
    TAPED: tl.constexpr,
):
    """LayerNorm of `target` in place, ẏ = g ⊙ (ẋ − mean ẋ − x̂ mean(x̂ ⊙ ẋ)) / σ, and the skip from `source`.

    TAPED: x̂ goes to hats + offset + column and 1/σ to inv_std, both (rows, 1) pointers.
    """
    dtype: tl.constexpr = target.dtype.element_ty
    WIDTH: tl.constexpr = NET.hidden[I]
    ROWS: tl.constexpr = SHAPE.rows
    total = tl.zeros((ROWS, 1), dtype)
    for n0 in range(0, WIDTH, SHAPE.columns):
        total += tl.sum(tl.load(at(target, n0 + tl.arange(0, SHAPE.columns), SHAPE)), 1, keep_dims=True)
    mean = total / WIDTH
    moment = tl.zeros((ROWS, 1), dtype)  # Σ c ⊙ c in the value rows, Σ c ⊙ ċ in the tangents
    for n0 in range(0, WIDTH, SHAPE.columns):
        cols = n0 + tl.arange(0, SHAPE.columns)
        centred = tl.where((cols < WIDTH)[None, :], tl.load(at(target, cols, SHAPE)) - mean, 0.0)
        moment += tl.sum(centred * value_rows(centred, SHAPE.R), 1, keep_dims=True)
    sigma_inv = 1.0 / tl.sqrt(value_rows(moment, SHAPE.R) / WIDTH + NET.eps)
    along = moment * sigma_inv / WIDTH  # mean(x̂ ⊙ ẋ) in the tangents
    for n0 in range(0, WIDTH, SHAPE.columns):
        cols = n0 + tl.arange(0, SHAPE.columns)
        g = tl.load(gain + cols, mask=cols < WIDTH, other=0.0)[None, :]
        b = tl.load(shift + cols, mask=cols < WIDTH, other=0.0)[None, :]
        centred = tl.where((cols < WIDTH)[None, :], tl.load(at(target, cols, SHAPE)) - mean, 0.0)
        hat = value_rows(centred, SHAPE.R) * sigma_inv
        rows = tl.where(is_value(SHAPE), hat * g + b, (centred - hat * along) * sigma_inv * g)
        if TAPED:
            tl.store(hats + offset + cols[None, :], hat, mask=live & (cols < WIDTH)[None, :])
        if I > 0 and NET.residual and NET.hidden[I] == NET.hidden[I - 1]:
            rows += tl.load(at(source, cols, SHAPE))
        tl.debug_barrier()
        tl.store(at(target, cols, SHAPE), rows)
    if TAPED:
        tl.store(inv_std + I, sigma_inv, mask=live)


@triton.jit
def close(
    source,
    target,
    norms,
    n,
    slopes,
    hats,
    inv_std,
    offset,
    live,
    I: tl.constexpr,
    NET: tl.constexpr,
    SHAPE: tl.constexpr,
    TAPED: tl.constexpr,
):
    """All of hidden layer I has been written to `target`: normalise it if the network does; then anyone may read it."""
    tl.debug_barrier()
    if NET.norm:
        normalise(
            source,
            target,
            norms[2 * I] + n * NET.hidden[I],
            norms[2 * I + 1] + n * NET.hidden[I],
            hats,
            inv_std,
            offset,
            live,
            I,
            NET,
            SHAPE,
            TAPED,
        )
        tl.debug_barrier()


@triton.jit
def dense(
    source,
    target,
    weight,
    bias,
    n,
    slopes,
    offset,
    live,
    I: tl.constexpr,
    NET: tl.constexpr,
    SHAPE: tl.constexpr,
    TAPED: tl.constexpr,
):
    """Hidden layer I > 0 up to its LayerNorm: `source` -> `target`. n: which of stacked weights."""
    IN: tl.constexpr = NET.hidden[I - 1]
    OUT: tl.constexpr = NET.hidden[I]
    for n0 in range(0, OUT, SHAPE.columns):
        cols = n0 + tl.arange(0, SHAPE.columns)
        z = product(source, weight + n * IN * OUT, n0, SHAPE.columns, IN, OUT, 1, IN, SHAPE)
        b = tl.load(bias + n * OUT + cols, mask=cols < OUT, other=0.0)[None, :]
        finish(z + tl.where(is_value(SHAPE), b, 0.0), source, target, slopes, offset, live, cols, I, NET, SHAPE, TAPED)


@triton.jit
def later_layers(
    buffers, weights, biases, norms, n, slopes, hats, inv_std, live, NET: tl.constexpr, SHAPE: tl.constexpr, TAPED: tl.constexpr
):
    """From the first hidden layer's activations in the first of two buffers to the last one's, in buffer (depth − 1) % 2.

    weights, biases: of every layer; norms: gain and shift of hidden layers 0….
    """
    offset = 0
    close(buffers, buffers, norms, n, slopes, hats, inv_std, offset, live, 0, NET, SHAPE, TAPED)
    for i in tl.static_range(1, len(NET.hidden)):
        offset += NET.hidden[i - 1]
        source = buffers + (i - 1) % 2 * SHAPE.rows * SHAPE.LD
        target = buffers + i % 2 * SHAPE.rows * SHAPE.LD
        dense(source, target, weights[i], biases[i], n, slopes, offset, live, i, NET, SHAPE, TAPED)
        close(source, target, norms, n, slopes, hats, inv_std, offset, live, i, NET, SHAPE, TAPED)


@triton.jit
def output(buffers, weights, biases, n, C: tl.constexpr, TANH: tl.constexpr, NET: tl.constexpr, SHAPE: tl.constexpr):
    """Rows of the network's output from the last hidden layer's buffer: (rows, C), zero from column `out` on."""
    cols = tl.arange(0, C)
    IN: tl.constexpr = NET.hidden[len(NET.hidden) - 1]
    source = buffers + (len(NET.hidden) - 1) % 2 * SHAPE.rows * SHAPE.LD
    y = product(source, weights[len(NET.hidden)] + n * IN * NET.out, 0, C, IN, NET.out, 1, IN, SHAPE)
    b = tl.load(biases[len(NET.hidden)] + n * NET.out + cols, mask=cols < NET.out, other=0.0)[None, :]
    y += tl.where(is_value(SHAPE), b, 0.0)
    if TANH:
        value = tanh(value_rows(y, SHAPE.R))
        y = tl.where(is_value(SHAPE), value, y * (1.0 - value * value))
    return y
