"""Inside a kernel: cotangents of a tile of particles back through the layers of an `MLP`; twin of `jacobians.mlp.mlp_pull`.

One row per particle. Scratch, barriers and zero padding as in `jacrec.kernels.rows`: z̄ of hidden layer i lies in buffer
i % 2, h̄ (what LayerNorm and skips need) in buffer 2 + i % 2.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportAssignmentType=false
# the language of kernels is not Python's: what a checker takes for a tl.constexpr is any value that the compiler knows

import triton
import triton.language as tl

from jacrec.kernels.rows import at, product, small_product


@triton.jit
def buffers_of(buffers, I: tl.constexpr, SHAPE: tl.constexpr):
    """Where z̄ and h̄ of hidden layer I lie."""
    SIZE: tl.constexpr = SHAPE.rows * SHAPE.LD
    return buffers + I % 2 * SIZE, buffers + (2 + I % 2) * SIZE


@triton.jit
def receive(h_bar, buffers, slopes, offset, live, cols, I: tl.constexpr, NET: tl.constexpr, SHAPE: tl.constexpr):
    """A chunk of h̄ of hidden layer I: to z̄ by the slope, unless LayerNorm comes between."""
    z_bar_buffer, h_bar_buffer = buffers_of(buffers, I, SHAPE)
    KEPT: tl.constexpr = I > 0 and NET.residual and NET.hidden[I] == NET.hidden[I - 1]
    if NET.norm or KEPT:
        tl.store(at(h_bar_buffer, cols, SHAPE), h_bar)
    if not NET.norm:
        slope = tl.load(slopes + offset + cols[None, :], mask=live & (cols < NET.hidden[I])[None, :], other=0.0)
        tl.store(at(z_bar_buffer, cols, SHAPE), h_bar * slope)


@triton.jit
def activate(
    buffers,
    norms,
    slopes,
    hats,
    inv_std,
    offset,
    live,
    I: tl.constexpr,
    NET: tl.constexpr,
    SHAPE: tl.constexpr,
):
    """All of h̄ of hidden layer I has been received: pull it through LayerNorm if there is one; then z̄ may be read."""
    tl.debug_barrier()
    if NET.norm:
        z_bar_buffer, h_bar_buffer = buffers_of(buffers, I, SHAPE)
        dtype: tl.constexpr = z_bar_buffer.dtype.element_ty
        ROWS: tl.constexpr = SHAPE.rows
        WIDTH: tl.constexpr = NET.hidden[I]
        gain = norms[2 * I]
        plain = tl.zeros((ROWS, 1), dtype)
        along = tl.zeros((ROWS, 1), dtype)
        for n0 in range(0, WIDTH, SHAPE.columns):
            cols = n0 + tl.arange(0, SHAPE.columns)
            exists = live & (cols < WIDTH)[None, :]
            g = tl.load(at(h_bar_buffer, cols, SHAPE)) * tl.load(gain + cols, mask=cols < WIDTH, other=0.0)[None, :]
            plain += tl.sum(g, 1, keep_dims=True)
            along += tl.sum(g * tl.load(hats + offset + cols[None, :], mask=exists, other=0.0), 1, keep_dims=True)
        scale = tl.load(inv_std + I, mask=live, other=0.0)
        for n0 in range(0, WIDTH, SHAPE.columns):
            cols = n0 + tl.arange(0, SHAPE.columns)
            exists = live & (cols < WIDTH)[None, :]
            g = tl.load(at(h_bar_buffer, cols, SHAPE)) * tl.load(gain + cols, mask=cols < WIDTH, other=0.0)[None, :]
            hat = tl.load(hats + offset + cols[None, :], mask=exists, other=0.0)
            slope = tl.load(slopes + offset + cols[None, :], mask=exists, other=0.0)
            tl.store(at(z_bar_buffer, cols, SHAPE), (g - plain / WIDTH - hat * (along / WIDTH)) * scale * slope)
        tl.debug_barrier()


@triton.jit
def pull_layer(buffers, weight, slopes, offset, live, I: tl.constexpr, NET: tl.constexpr, SHAPE: tl.constexpr):
    """From z̄ of hidden layer I > 0 to h̄ of the one below, received."""
    IN: tl.constexpr = NET.hidden[I]
    OUT: tl.constexpr = NET.hidden[I - 1]
    z_bar_buffer, h_bar_buffer = buffers_of(buffers, I, SHAPE)
    for n0 in range(0, OUT, SHAPE.columns):
        cols = n0 + tl.arange(0, SHAPE.columns)
        h_bar = product(z_bar_buffer, weight, n0, SHAPE.columns, IN, OUT, OUT, 1, SHAPE)
        if NET.residual and IN == OUT:
            h_bar += tl.load(at(h_bar_buffer, cols, SHAPE))
        receive(h_bar, buffers, slopes, offset, live, cols, I - 1, NET, SHAPE)


@triton.jit
def pull_hidden(
    y_bar,
    buffers,
    weights,
    norms,
    slopes,
    hats,
    inv_std,
    live,
    OUT: tl.constexpr,
    G: tl.constexpr,
    NET: tl.constexpr,
    SHAPE: tl.constexpr,
):
    """From the output's cotangent (rows, columns >= OUT) in registers to z̄ of the first hidden layer, in buffer 0.

    weights: of every layer; slopes, hats, inv_std: (rows, 1) pointers to the tape of each row; G: slopes of a row.
    """
    LAST: tl.constexpr = len(NET.hidden) - 1
    WIDTH: tl.constexpr = NET.hidden[LAST]
    for n0 in range(0, WIDTH, SHAPE.columns):
        cols = n0 + tl.arange(0, SHAPE.columns)
        h_bar = small_product(y_bar, weights[LAST + 1], cols, OUT, WIDTH, WIDTH, 1, SHAPE)
        receive(h_bar, buffers, slopes, G - WIDTH, live, cols, LAST, NET, SHAPE)
    offset = G - WIDTH
    activate(buffers, norms, slopes, hats, inv_std, offset, live, LAST, NET, SHAPE)
    for i in tl.static_range(LAST, 0, -1):
        offset -= NET.hidden[i - 1]
        pull_layer(buffers, weights[i], slopes, offset, live, i, NET, SHAPE)
        activate(buffers, norms, slopes, hats, inv_std, offset, live, i - 1, NET, SHAPE)
