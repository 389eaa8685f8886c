"""Rows of int64 that Python writes and compiled code reads as NamedTuples: one definition of the fields for both."""

import ctypes
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from jacrec.kernels.cpu.base.tiles import INT, intrinsic

WORD = 8
"""bytes of an int64"""


@cache
def reader(kind: type[tuple]) -> Any:
    """The intrinsic (address) -> `kind`, a NamedTuple whose fields are the int64 from that address on."""
    fields = kind._fields  # pyright: ignore[reportAttributeAccessIssue]
    result = types.NamedUniTuple(types.int64, len(fields), kind)

    @intrinsic
    def read(typing, address):
        def emit(context, builder, signature, args):
            return context.make_tuple(builder, result, _words(builder, args[0], len(fields)))

        return result(types.int64), emit

    return read


@cache
def relative_reader(kind: type[tuple]) -> Any:
    """The intrinsic (address, base) -> `kind`, a NamedTuple of addresses: base plus the int64 from that address on."""
    fields = kind._fields  # pyright: ignore[reportAttributeAccessIssue]
    result = types.NamedUniTuple(types.int64, len(fields), kind)

    @intrinsic
    def read(typing, address, base):
        def emit(context, builder, signature, args):
            offsets = _words(builder, args[0], len(fields))
            return context.make_tuple(builder, result, [builder.add(offset, args[1]) for offset in offsets])

        return result(types.int64, types.int64), emit

    return read


def _words(builder: ir.IRBuilder, address: ir.Value, count: int) -> list[ir.Value]:
    pointer = builder.inttoptr(address, ir.PointerType(INT))
    return [builder.load(builder.gep(pointer, [ir.Constant(INT, i)])) for i in range(count)]


def address_of(row: np.ndarray) -> int:
    """The address of a contiguous array, in a third of the time of `row.ctypes.data`."""
    return ctypes.addressof(ctypes.c_char.from_buffer(row.data))


def row_of(values: Iterable[int]) -> np.ndarray:
    """The fields of a NamedTuple as a row of int64."""
    return np.array([int(value) for value in values], dtype=np.int64)
