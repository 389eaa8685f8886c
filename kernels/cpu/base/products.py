"""Matrix products of any size from tiles: blocks of four rows, then two, then one.

Arguments as in `jacrec.kernels.cpu.base.tiles`: addresses in bytes, strides in elements, `like` for the element's type. A tile
of R rows is as wide as the accumulators allow; the remaining columns use tiles of width one.
"""

from jacrec.kernels.cpu.base.host import ACCUMULATORS, VECTOR_BYTES, part
from jacrec.kernels.cpu.base.rows import WORD
from jacrec.kernels.cpu.base.tiles import LISTED, at, axpy_tile, dot_tile, listed_dot_tile, size_of, transpose_tile


def _dot_rows(R: int):
    width = ACCUMULATORS // R
    wide, narrow = dot_tile(R, width), dot_tile(R, 1)

    @part
    def rows(like, blocks, x, x_stride, w, w_stride, O, n, y, y_stride):
        size = size_of(like)
        x_block, y_block, w_row = R * x_stride * size, R * y_stride * size, w_stride * size
        whole = O - O % width
        # one block of w at a time: it stays in the nearest cache while all rows pass
        for o in range(0, whole, width):
            for b in range(blocks):
                wide(like, x + b * x_block, x_stride, w + o * w_row, w_stride, n, y + b * y_block + o * size, y_stride)
        for o in range(whole, O):
            for b in range(blocks):
                narrow(like, x + b * x_block, x_stride, w + o * w_row, w_stride, n, y + b * y_block + o * size, y_stride)

    return rows


def _axpy_rows(R: int, add: bool, vectors: int):
    half = max(1, vectors // 2)
    wide, middle, narrow = axpy_tile(R, vectors, add), axpy_tile(R, half, add), axpy_tile(R, 1, add)

    @part
    def rows(like, blocks, x, x_stride, x_step, w, w_stride, n, columns, y, y_stride):
        size = size_of(like)
        lanes = VECTOR_BYTES // size
        x_block, y_block = R * x_stride * size, R * y_stride * size
        whole = columns - columns % (vectors * lanes)
        most = columns - columns % (half * lanes)
        for c in range(0, whole, vectors * lanes):
            for b in range(blocks):
                wide(like, x + b * x_block, x_stride, x_step, w + c * size, w_stride, n, y + b * y_block + c * size, y_stride)
        # at most one: a tile of a single vector would wait for its own sums
        for c in range(whole, most, half * lanes):
            for b in range(blocks):
                middle(like, x + b * x_block, x_stride, x_step, w + c * size, w_stride, n, y + b * y_block + c * size, y_stride)
        for c in range(most, columns, lanes):
            for b in range(blocks):
                narrow(like, x + b * x_block, x_stride, x_step, w + c * size, w_stride, n, y + b * y_block + c * size, y_stride)

    return rows


_dot_4, _dot_2, _dot_1 = _dot_rows(4), _dot_rows(2), _dot_rows(1)


@part
def dot(like, x, x_stride, R, w, w_stride, O, n, y, y_stride):
    """y (R, O) = x (R, n) w (O, n)ᵀ; n a multiple of the vector's lanes."""
    row, tall = x_stride * size_of(like), y_stride * size_of(like)
    _dot_4(like, R // 4, x, x_stride, w, w_stride, O, n, y, y_stride)
    r = R - R % 4
    if R % 4 >= 2:
        _dot_2(like, 1, x + r * row, x_stride, w, w_stride, O, n, y + r * tall, y_stride)
    if R % 2:
        _dot_1(like, 1, x + (R - 1) * row, x_stride, w, w_stride, O, n, y + (R - 1) * tall, y_stride)


TALL = 6 if ACCUMULATORS > 8 else 2
"""rows of a tile with `LISTED` outputs: half as many accumulators again, since it loads few vectors"""
_listed = [listed_dot_tile(R) for R in range(1, 7)]
_listed_1, _listed_2, _listed_3, _listed_4, _listed_5, _listed_6 = _listed


@part
def _listed_tile(like, rows, x, x_stride, w, w_stride, index, n, y, y_stride):
    if rows == 6:
        _listed_6(like, x, x_stride, w, w_stride, index, n, y, y_stride)
    elif rows == 5:
        _listed_5(like, x, x_stride, w, w_stride, index, n, y, y_stride)
    elif rows == 4:
        _listed_4(like, x, x_stride, w, w_stride, index, n, y, y_stride)
    elif rows == 3:
        _listed_3(like, x, x_stride, w, w_stride, index, n, y, y_stride)
    elif rows == 2:
        _listed_2(like, x, x_stride, w, w_stride, index, n, y, y_stride)
    else:
        _listed_1(like, x, x_stride, w, w_stride, index, n, y, y_stride)


@part
def dot_listed(like, x, x_stride, R, w, w_stride, index, count, n, y, y_stride):
    """y (R, count) = x (R, n) w[index] (count, n)ᵀ; index: address of int64, count a multiple of `LISTED`, n of the lanes.

    Every row of w is read once, whatever R is.
    """
    size = size_of(like)
    blocks = (R + TALL - 1) // TALL
    rows, more = R // blocks, R % blocks
    for o in range(0, count, LISTED):
        r = 0
        for b in range(blocks):
            height = rows + (1 if b < more else 0)
            to = y + (r * y_stride + o) * size
            _listed_tile(like, height, x + r * x_stride * size, x_stride, w, w_stride, index + o * WORD, n, to, y_stride)
            r += height


def _axpy(add: bool):
    four, two, one = (_axpy_rows(R, add, ACCUMULATORS // R) for R in (4, 2, 1))

    @part
    def product(like, x, x_stride, x_step, R, w, w_stride, n, columns, y, y_stride):
        row, tall = x_stride * size_of(like), y_stride * size_of(like)
        four(like, R // 4, x, x_stride, x_step, w, w_stride, n, columns, y, y_stride)
        r = R - R % 4
        if R % 4 >= 2:
            two(like, 1, x + r * row, x_stride, x_step, w, w_stride, n, columns, y + r * tall, y_stride)
        if R % 2:
            one(like, 1, x + (R - 1) * row, x_stride, x_step, w, w_stride, n, columns, y + (R - 1) * tall, y_stride)

    return product


axpy = _axpy(add=False)
"""y (R, columns) = x (R, n) w (n, columns); columns a multiple of the lanes, x[r, k] at r·x_stride + k·x_step"""
axpy_add = _axpy(add=True)
"""the same, added to what y holds"""


@part
def transpose(like, x, x_stride, O, n, y, y_stride):
    """y (n, O) = x (O, n)ᵀ; n a multiple of the lanes."""
    size = size_of(like)
    lanes = VECTOR_BYTES // size
    whole = O - O % lanes
    for i in range(0, n, lanes):
        for o in range(0, whole, lanes):
            transpose_tile(like, x + (o * x_stride + i) * size, x_stride, y + (i * y_stride + o) * size, y_stride)
    target = at(like, y)
    for o in range(whole, O):
        row = at(like, x + o * x_stride * size)
        for i in range(n):
            target[i * y_stride + o] = row[i]


def _axpy_many(add: bool):
    six, rest = _axpy_rows(6, add, ACCUMULATORS // 4), axpy_add if add else axpy

    @part
    def product(like, x, x_stride, x_step, R, w, w_stride, n, columns, y, y_stride):
        size, whole = size_of(like), R - R % 6
        six(like, R // 6, x, x_stride, x_step, w, w_stride, n, columns, y, y_stride)
        if whole < R:
            x, y = x + whole * x_stride * size, y + whole * y_stride * size
            rest(like, x, x_stride, x_step, R - whole, w, w_stride, n, columns, y, y_stride)

    return product


axpy_many = _axpy_many(add=False)
"""as `axpy`, for many rows: blocks of six, whose sums take three quarters of the vector registers"""
axpy_many_add = _axpy_many(add=True)
"""the same, added to what y holds"""
