"""Matrix products and transposes of any width: whole vectors as in `products`, the remainder in masked ones.

Arguments as in `jacrec.kernels.cpu.base.tiles`: addresses in bytes, strides in elements, `like` for the element's type.
"""

from functools import cache
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_or_insert_function

from jacrec.kernels.cpu.base.host import VECTOR_BYTES, part
from jacrec.kernels.cpu.base.products import axpy_many, axpy_many_add, dot
from jacrec.kernels.cpu.base.tiles import ELEMENTS, INT, Emitter, at, intrinsic, size_of


class Masked(Emitter):
    """Also loads and stores some lanes of a vector."""

    def below(self, count):
        """The mask of the lanes before `count`."""
        undefined = ir.Constant(ir.VectorType(INT, self.lanes), ir.Undefined)
        one = self.builder.insert_element(undefined, count, ir.Constant(ir.IntType(32), 0))
        counts = self.shuffle(one, undefined, [0] * self.lanes)
        return self.builder.icmp_signed("<", ir.Constant(counts.type, list(range(self.lanes))), counts)

    def load_some(self, address, mask):
        """The masked lanes at the address, the others zero."""
        place, align = ir.PointerType(self.vector), ir.Constant(ir.IntType(32), self.size)
        kind = ir.FunctionType(self.vector, [place, align.type, mask.type, self.vector])
        function = get_or_insert_function(self.builder.module, kind, f"llvm.masked.load.v{self.lanes}{self.suffix}.p0")
        return self.builder.call(
            function, [self.builder.inttoptr(address, place), align, mask, ir.Constant(self.vector, [0.0] * self.lanes)]
        )

    def store_some(self, value, address, mask):
        """Put the masked lanes at the address; memory of the other lanes is not touched."""
        place, align = ir.PointerType(self.vector), ir.Constant(ir.IntType(32), self.size)
        kind = ir.FunctionType(ir.VoidType(), [self.vector, place, align.type, mask.type])
        function = get_or_insert_function(self.builder.module, kind, f"llvm.masked.store.v{self.lanes}{self.suffix}.p0")
        self.builder.call(function, [value, self.builder.inttoptr(address, place), align, mask])


@cache
def axpy_rest(R: int, add: bool):
    """The intrinsic (like, x, x_stride, x_step, w, w_stride, n, columns, y, y_stride) for R rows and less than a vector.

    y[r, i] = Σ_{k<n} x[r, k] w[k, i] for i < columns, added to what y holds if `add`; x[r, k] lies at r·x_stride + k·x_step.
    """

    @intrinsic
    def tile(typing, like, x, x_stride, x_step, w, w_stride, n, columns, y, y_stride):
        if like not in ELEMENTS:
            return None

        def emit(context, builder, signature, args):
            e = Masked(builder, like)
            _, x, x_stride, x_step, w, w_stride, n, columns, y, y_stride = args
            mask = e.below(columns)
            rows = [ir.Constant(INT, r) for r in range(R)]
            xs = [e.offset(x, builder.mul(x_stride, r)) for r in rows]
            ys = [e.offset(y, builder.mul(y_stride, r)) for r in rows]

            def body(k, sums):
                b = e.load_some(e.offset(w, builder.mul(w_stride, k)), mask)
                a = [e.spread(e.load(e.offset(address, builder.mul(x_step, k)), e.element)) for address in xs]
                return [e.fma(a[r], b, sums[r]) for r in range(R)]

            zero = ir.Constant(e.vector, [0.0] * e.lanes)
            begin = [e.load_some(place, mask) if add else zero for place in ys]
            for value, place in zip(e.loop(n, 1, begin, body), ys, strict=True):
                e.store_some(value, place, mask)
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 9), emit

    return tile


@intrinsic
def transpose_tile(typing, like, x, x_stride, y, y_stride):
    """y = xᵀ for as many rows and columns as a vector has lanes."""
    if like not in ELEMENTS:
        return None

    def emit(context, builder, signature, args):
        e = Emitter(builder, like)
        _, x, x_stride, y, y_stride = args
        lines = [ir.Constant(INT, i) for i in range(e.lanes)]
        rows: list[Any] = [e.load(e.offset(x, builder.mul(x_stride, i))) for i in lines]
        step = 1
        while step < e.lanes:
            # the off-diagonal blocks of `step` change offsets within every pair of rows that are `step` apart
            low = [j + (e.lanes - step if j & step else 0) for j in range(e.lanes)]
            high = [j + (e.lanes if j & step else step) for j in range(e.lanes)]
            for i in range(e.lanes):
                if not i & step:
                    a, b = rows[i], rows[i + step]
                    rows[i], rows[i + step] = e.shuffle(a, b, low), e.shuffle(a, b, high)
            step *= 2
        for i, row in zip(lines, rows, strict=True):
            e.store(row, e.offset(y, builder.mul(y_stride, i)))
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 4), emit


@part
def transpose(like, x, x_stride, R, C, y, y_stride):
    """y (C, R) = xᵀ for x (R, C)."""
    size = size_of(like)
    lanes = VECTOR_BYTES // size
    rows, columns = R - R % lanes, C - C % lanes
    for i in range(0, rows, lanes):
        for j in range(0, columns, lanes):
            transpose_tile(like, x + (i * x_stride + j) * size, x_stride, y + (j * y_stride + i) * size, y_stride)
    source, target = at(like, x), at(like, y)
    for i in range(R):
        for j in range(columns if i < rows else 0, C):
            target[j * y_stride + i] = source[i * x_stride + j]


def _any_axpy(add: bool):
    whole_vectors, rest_4, rest_1 = axpy_many_add if add else axpy_many, axpy_rest(4, add), axpy_rest(1, add)

    @part
    def product(like, x, x_stride, x_step, R, w, w_stride, n, columns, y, y_stride):
        size = size_of(like)
        whole = columns - columns % (VECTOR_BYTES // size)
        if whole:
            whole_vectors(like, x, x_stride, x_step, R, w, w_stride, n, whole, y, y_stride)
        rest, w, y = columns - whole, w + whole * size, y + whole * size
        if rest == 0:
            return
        for r in range(0, R - R % 4, 4):
            rest_4(like, x + r * x_stride * size, x_stride, x_step, w, w_stride, n, rest, y + r * y_stride * size, y_stride)
        for r in range(R - R % 4, R):
            rest_1(like, x + r * x_stride * size, x_stride, x_step, w, w_stride, n, rest, y + r * y_stride * size, y_stride)

    return product


any_axpy = _any_axpy(add=False)
"""y (R, columns) = x (R, n) w (n, columns); x[r, k] at r·x_stride + k·x_step"""
any_axpy_add = _any_axpy(add=True)
"""the same, added to what y holds"""


@part
def any_dot(like, x, x_stride, R, w, w_stride, O, n, y, y_stride, transposed):
    """y (R, O) = x (R, n) w (O, n)ᵀ; `transposed` has space for O·n elements.

    Many outputs are computed from wᵀ: without sums across lanes that is faster, including the transpose.
    """
    lanes = VECTOR_BYTES // size_of(like)
    if lanes > O and n % lanes == 0:
        dot(like, x, x_stride, R, w, w_stride, O, n, y, y_stride)
    else:
        transpose(like, w, w_stride, O, n, transposed, O)
        any_axpy(like, x, x_stride, 1, R, transposed, O, n, O, y, y_stride)
