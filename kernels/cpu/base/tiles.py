"""The inner loops of every matrix product, written in LLVM's vector instructions: the speed of everything else depends on them.

Two shapes serve values, tangents, cotangents and parameter gradients alike, on row-major matrices as torch has them:

    dot_tile    y[r, o] = Σ_i x[r, i] w[o, i]       both read along i; partial sums in vector lanes, folded at the end
    axpy_tile   y[r, i] (+)= Σ_k x[r, k] w[k, i]    w read along i; x[r, k] broadcast

A tile keeps R·O (R·V) sums in registers, so that each number loaded is used O or R times. Addresses are plain int64
bytes, strides count elements, `like` is any number of the element's type.
"""

from functools import cache
from typing import Any

import numba
from llvmlite import ir
from numba import extending
from numba.core import types
from numba.core.cgutils import get_or_insert_function

from jacrec.kernels.cpu.base.host import VECTOR_BYTES

ELEMENTS = {types.float32: (ir.FloatType(), 4, "f32"), types.float64: (ir.DoubleType(), 8, "f64")}
INT, BITS = ir.IntType(64), ir.IntType(16)
BIT_BYTES = 2
"""bytes of a vector's bits, at most one for each of 16 lanes"""
LISTED = 4
"""outputs of a tile whose rows of w are given by a list"""
carray: Any = numba.carray  # pyright: ignore[reportPrivateImportUsage]
intrinsic: Any = extending.intrinsic  # its callers do not pass the typing context


class Emitter:
    """Vector loads, stores and multiply–adds of one element type."""

    def __init__(self, builder: ir.IRBuilder, like: types.Type):
        self.builder = builder
        self.element, self.size, self.suffix = ELEMENTS[like]
        self.lanes = VECTOR_BYTES // self.size
        self.vector = ir.VectorType(self.element, self.lanes)

    def offset(self, address, index):
        """address + index elements."""
        return self.builder.add(address, self.builder.mul(index, ir.Constant(INT, self.size)))

    def load(self, address, kind=None):
        """The value at the address, by default a vector."""
        pointer = self.builder.inttoptr(address, ir.PointerType(kind or self.vector))
        return self.builder.load(pointer, align=self.size)

    def store(self, value, address):
        """Store a scalar or vector at the address."""
        self.builder.store(value, self.builder.inttoptr(address, ir.PointerType(value.type)), align=self.size)

    def spread(self, scalar):
        """The scalar in all lanes."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        one = self.builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        return self.builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), None))

    def fma(self, a, b, c):
        """a·b + c."""
        name = f"llvm.fma.v{self.lanes}{self.suffix}"
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        return self.builder.call(get_or_insert_function(self.builder.module, kind, name), [a, b, c])

    def shuffle(self, a, b, lanes):
        """The lanes of a (0…) and b (L…) in the given order."""
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))
        return self.builder.shuffle_vector(a, b, mask)

    def fold(self, sums: list):
        """L vectors -> one vector, whose lane i is the sum over vector i: neighbours are added until one is left."""
        while len(sums) > 1:
            even, odd = range(0, 2 * self.lanes, 2), range(1, 2 * self.lanes, 2)
            sums = [
                self.builder.fadd(self.shuffle(a, b, even), self.shuffle(a, b, odd))
                for a, b in zip(sums[::2], sums[1::2], strict=True)
            ]
        return sums[0]

    def fold_any(self, sums: list):
        """The same for any number of vectors: groups of L, the last one filled up with zeros."""
        zero = ir.Constant(self.vector, [0.0] * self.lanes)
        sums = sums + [zero] * (-len(sums) % self.lanes)
        return [self.fold(sums[first : first + self.lanes]) for first in range(0, len(sums), self.lanes)]

    def total(self, vector):
        """The sum of a vector's lanes, added in the order of `fold`: a tile's width changes no bit."""
        lanes = self.lanes
        while lanes > 1:
            even, odd = (self.shuffle(vector, vector, range(first, lanes, 2)) for first in (0, 1))
            vector, lanes = self.builder.fadd(even, odd), lanes // 2
        return self.builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))

    def loop(self, count, step: int, carried: list, body):
        """for i in range(0, count, step): carried = body(i, carried); returns the last `carried`."""
        b = self.builder
        before = b.block
        head, inside, after = (b.append_basic_block(name) for name in ("head", "inside", "after"))
        b.branch(head)
        b.position_at_end(head)
        i = b.phi(INT)
        phis = [b.phi(value.type) for value in carried]
        i.add_incoming(ir.Constant(INT, 0), before)
        for phi, value in zip(phis, carried, strict=True):
            phi.add_incoming(value, before)
        b.cbranch(b.icmp_signed("<", i, count), inside, after)
        b.position_at_end(inside)
        updated = body(i, phis)
        i.add_incoming(b.add(i, ir.Constant(INT, step)), b.block)
        for phi, value in zip(phis, updated, strict=True):
            phi.add_incoming(value, b.block)
        b.branch(head)
        b.position_at_end(after)
        return phis


def _check(like, *integers):
    return like in ELEMENTS and all(isinstance(t, types.Integer) for t in integers)


@cache
def dot_tile(R: int, O: int):
    """The intrinsic (like, x, x_stride, w, w_stride, n, y, y_stride) for R rows and O outputs.

    y[r, o] = Σ_{i<n} x[r, i] w[o, i]; n is a multiple of the lanes.
    """

    @intrinsic
    def tile(typing, like, x, x_stride, w, w_stride, n, y, y_stride):
        if not _check(like, x, x_stride, w, w_stride, n, y, y_stride):
            return None

        def emit(context, builder, signature, args):
            e = Emitter(builder, like)
            _, x, x_stride, w, w_stride, n, y, y_stride = args
            xs = [e.offset(x, builder.mul(x_stride, ir.Constant(INT, r))) for r in range(R)]
            ws = [e.offset(w, builder.mul(w_stride, ir.Constant(INT, o))) for o in range(O)]
            zero = ir.Constant(e.vector, [0.0] * e.lanes)

            def body(i, sums):
                a = [e.load(e.offset(address, i)) for address in xs]
                out = list(sums)
                for o, address in enumerate(ws):
                    b = e.load(e.offset(address, i))
                    for r in range(R):
                        out[r * O + o] = e.fma(a[r], b, out[r * O + o])
                return out

            sums = e.loop(n, e.lanes, [zero] * (R * O), body)
            places = [
                e.offset(y, builder.add(builder.mul(y_stride, ir.Constant(INT, r)), ir.Constant(INT, o)))
                for r in range(R)
                for o in range(O)
            ]
            if len(sums) % e.lanes:
                for value, place in zip(sums, places, strict=True):
                    e.store(e.total(value), place)
            else:
                for first in range(0, len(sums), e.lanes):
                    folded = e.fold(sums[first : first + e.lanes])
                    run = min(O, e.lanes)  # sums that lie side by side in y
                    for i in range(0, e.lanes, run):
                        e.store(folded if run == e.lanes else e.shuffle(folded, folded, range(i, i + run)), places[first + i])
            return context.get_dummy_value()

        return types.void(like, x, x_stride, w, w_stride, n, y, y_stride), emit

    return tile


@cache
def listed_dot_tile(R: int):
    """The intrinsic (like, x, x_stride, w, w_stride, index, n, y, y_stride) for R rows and `LISTED` outputs.

    y[r, o] = Σ_{i<n} x[r, i] w[index[o], i], index: address of int64; n is a multiple of the lanes. Sums as in `dot_tile`.
    """

    @intrinsic
    def tile(typing, like, x, x_stride, w, w_stride, index, n, y, y_stride):
        if not _check(like, x, x_stride, w, w_stride, index, n, y, y_stride):
            return None

        def emit(context, builder, signature, args):
            e = Emitter(builder, like)
            _, x, x_stride, w, w_stride, index, n, y, y_stride = args
            xs = [e.offset(x, builder.mul(x_stride, ir.Constant(INT, r))) for r in range(R)]
            list_of = builder.inttoptr(index, ir.PointerType(INT))
            numbers = [builder.load(builder.gep(list_of, [ir.Constant(INT, o)])) for o in range(LISTED)]
            ws = [e.offset(w, builder.mul(w_stride, number)) for number in numbers]
            zero = ir.Constant(e.vector, [0.0] * e.lanes)

            def body(i, sums):
                b = [e.load(e.offset(address, i)) for address in ws]
                out = list(sums)
                for r, address in enumerate(xs):
                    a = e.load(e.offset(address, i))
                    for o in range(LISTED):
                        out[r * LISTED + o] = e.fma(a, b[o], out[r * LISTED + o])
                return out

            folded = e.fold_any(e.loop(n, e.lanes, [zero] * (R * LISTED), body))
            run = min(LISTED, e.lanes)  # sums that lie side by side in y
            for first in range(0, R * LISTED, run):
                group, lane = folded[first // e.lanes], first % e.lanes
                place = e.offset(y, builder.mul(y_stride, ir.Constant(INT, first // LISTED)))
                part = group if run == e.lanes else e.shuffle(group, group, range(lane, lane + run))
                e.store(part, e.offset(place, ir.Constant(INT, first % LISTED)))
            return context.get_dummy_value()

        return types.void(like, x, x_stride, w, w_stride, index, n, y, y_stride), emit

    return tile


@cache
def axpy_tile(R: int, V: int, add: bool):
    """The intrinsic (like, x, x_stride, x_step, w, w_stride, n, y, y_stride) for R rows and V vectors of i.

    y[r, i] = Σ_{k<n} x[r, k] w[k, i], added to what y holds if `add`; x[r, k] lies at r·x_stride + k·x_step.
    """

    @intrinsic
    def tile(typing, like, x, x_stride, x_step, w, w_stride, n, y, y_stride):
        if not _check(like, x, x_stride, x_step, w, w_stride, n, y, y_stride):
            return None

        def emit(context, builder, signature, args):
            e = Emitter(builder, like)
            _, x, x_stride, x_step, w, w_stride, n, y, y_stride = args
            xs = [e.offset(x, builder.mul(x_stride, ir.Constant(INT, r))) for r in range(R)]
            ys = [e.offset(y, builder.mul(y_stride, ir.Constant(INT, r))) for r in range(R)]
            places = [builder.add(address, ir.Constant(INT, v * VECTOR_BYTES)) for address in ys for v in range(V)]
            zero = ir.Constant(e.vector, [0.0] * e.lanes)

            def body(k, sums):
                row = e.offset(w, builder.mul(w_stride, k))
                b = [e.load(builder.add(row, ir.Constant(INT, v * VECTOR_BYTES))) for v in range(V)]
                out = list(sums)
                for r in range(R):
                    a = e.spread(e.load(e.offset(xs[r], builder.mul(x_step, k)), e.element))
                    for v in range(V):
                        out[r * V + v] = e.fma(a, b[v], out[r * V + v])
                return out

            begin = [e.load(place) for place in places] if add else [zero] * (R * V)
            sums = e.loop(n, 1, begin, body)
            for value, place in zip(sums, places, strict=True):
                e.store(value, place)
            return context.get_dummy_value()

        return types.void(like, x, x_stride, x_step, w, w_stride, n, y, y_stride), emit

    return tile


@intrinsic
def transpose_tile(typing, like, x, x_stride, y, y_stride):
    """y[i, o] = x[o, i] for a square of as many rows as there are lanes."""
    if not _check(like, x, x_stride, y, y_stride):
        return None

    def emit(context, builder, signature, args):
        e = Emitter(builder, like)
        _, x, x_stride, y, y_stride = args
        lanes = e.lanes
        rows = [e.load(e.offset(x, builder.mul(x_stride, ir.Constant(INT, o)))) for o in range(lanes)]
        halves = [[half * lanes // 2 + i // 2 + i % 2 * lanes for i in range(lanes)] for half in range(2)]
        for _ in range(lanes.bit_length() - 1):  # each round interleaves the rows of the first half with those of the second
            pairs = zip(rows[: lanes // 2], rows[lanes // 2 :], strict=True)
            rows = [e.shuffle(a, b, half) for a, b in pairs for half in halves]
        for i, row in enumerate(rows):
            e.store(row, e.offset(y, builder.mul(y_stride, ir.Constant(INT, i))))
        return context.get_dummy_value()

    return types.void(like, x, x_stride, y, y_stride), emit


@intrinsic
def relu_bits(typing, like, x, bits):
    """A vector x ← max(x, 0); where it is positive or NaN goes to `bits`, an int16."""
    if not _check(like, x, bits):
        return None

    def emit(context, builder, signature, args):
        e = Emitter(builder, like)
        _, x, bits = args
        value, zero = e.load(x), ir.Constant(e.vector, [0.0] * e.lanes)
        positive = builder.fcmp_unordered(">", value, zero)
        e.store(builder.select(positive, value, zero), x)
        mask = builder.bitcast(positive, ir.IntType(e.lanes))
        mask = mask if e.lanes == 16 else builder.zext(mask, BITS)
        builder.store(mask, builder.inttoptr(bits, ir.PointerType(BITS)), align=2)
        return context.get_dummy_value()

    return types.void(like, x, bits), emit


@intrinsic
def keep_bits(typing, like, x, bits):
    """A vector x, 0 in the lanes whose bit is 0 in the int16 at `bits`."""
    if not _check(like, x, bits):
        return None

    def emit(context, builder, signature, args):
        e = Emitter(builder, like)
        _, x, bits = args
        mask = builder.load(builder.inttoptr(bits, ir.PointerType(BITS)), align=2)
        mask = mask if e.lanes == 16 else builder.trunc(mask, ir.IntType(e.lanes))
        which = builder.bitcast(mask, ir.VectorType(ir.IntType(1), e.lanes))
        e.store(builder.select(which, e.load(x), ir.Constant(e.vector, [0.0] * e.lanes)), x)
        return context.get_dummy_value()

    return types.void(like, x, bits), emit


@intrinsic
def at(typing, like, address):
    """The memory at an address as a pointer that can be indexed."""
    if not _check(like, address):
        return None

    def emit(context, builder, signature, args):
        return builder.inttoptr(args[1], context.get_value_type(signature.return_type))

    return types.CPointer(like)(like, address), emit


@intrinsic
def size_of(typing, like):
    """Bytes of an element."""
    if not _check(like):
        return None

    def emit(context, builder, signature, args):
        return ir.Constant(INT, ELEMENTS[like][1])

    return types.int64(like), emit


@intrinsic
def integers(typing, address):
    """The memory at an address as int64."""

    def emit(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int64)(address), emit


@intrinsic
def fetch_add(typing, address):
    """Atomically increment the int64 at an address; its value before."""

    def emit(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.PointerType(INT))
        return builder.atomic_rmw("add", pointer, ir.Constant(INT, 1), "acq_rel")

    return types.int64(address), emit


@intrinsic
def atomic_load(typing, address):
    """The int64 at an address, loaded with acquire order: what its writer wrote before is visible."""

    def emit(context, builder, signature, args):
        return builder.load_atomic(builder.inttoptr(args[0], ir.PointerType(INT)), "acquire", 8)

    return types.int64(address), emit


@intrinsic
def atomic_store(typing, address, value):
    """Store an int64 at an address with release order, for threads that read it by `atomic_load`."""

    def emit(context, builder, signature, args):
        builder.store_atomic(args[1], builder.inttoptr(args[0], ir.PointerType(INT)), "release", 8)
        return context.get_dummy_value()

    return types.void(address, types.int64), emit


@intrinsic
def prefetch_to_write(typing, address):
    """Prefetch the cache line at the address for writing."""

    def emit(context, builder, signature, args):
        pointer, small = ir.PointerType(ir.IntType(8)), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, small, small, small])
        function = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [builder.inttoptr(args[0], pointer), *(ir.Constant(small, x) for x in (1, 3, 1))])
        return context.get_dummy_value()

    return types.void(address), emit
