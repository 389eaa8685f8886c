"""What threads need to wait for one another in compiled code: compare-and-swap, a clock, futexes, and a task called by its address."""

import platform
import sys
import time
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.cgutils import get_or_insert_function

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.tiles import INT, intrinsic

_FUTEX_CALLS = {"x86_64": 202, "aarch64": 98, "riscv64": 98}
"""the system call's number; on these machines an int64's lower half comes first"""
_FUTEX = _FUTEX_CALLS.get(platform.machine(), 0) if sys.platform == "linux" else 0
FUTEX = _FUTEX > 0
"""whether compiled code can sleep on a word of memory"""
_WAIT, _WAKE = 128, 129  # of this process alone
_CLOCK: int | None = getattr(time, "CLOCK_MONOTONIC", None)
SHORT_MICROSECONDS = 50
_RELAX = {"x86_64": ("llvm.x86.sse2.pause", []), "amd64": ("llvm.x86.sse2.pause", []), "aarch64": ("llvm.aarch64.hint", [1])}
_RELAX["arm64"] = _RELAX["aarch64"]


@intrinsic
def relax(typing):
    """Tell the processor that this thread polls: a sibling on the same core goes faster meanwhile."""

    def emit(context, builder, signature, args):
        name, numbers = _RELAX.get(platform.machine().lower(), (None, []))
        if name is not None:
            small = ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [small] * len(numbers))
            function = get_or_insert_function(builder.module, kind, name)
            builder.call(function, [ir.Constant(small, x) for x in numbers])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def compare_and_swap(typing, address, expected, value):
    """Atomically store `value` in the int64 at an address if it is `expected`; whether it was."""

    def emit(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.PointerType(INT))
        return builder.extract_value(builder.cmpxchg(pointer, args[1], args[2], "seq_cst", "seq_cst"), 1)

    return types.boolean(address, types.int64, types.int64), emit


@intrinsic
def nanoseconds(typing):
    """A clock that never goes back; without POSIX it counts the processor's cycles."""

    def emit(context, builder, signature, args):
        if _CLOCK is None:
            kind = ir.FunctionType(INT, [])
            return builder.call(get_or_insert_function(builder.module, kind, "llvm.readcyclecounter"), [])
        pair = ir.ArrayType(INT, 2)
        held = cgutils.alloca_once(builder, pair)
        kind = ir.FunctionType(ir.IntType(32), [ir.IntType(32), ir.PointerType(pair)])
        clock = get_or_insert_function(builder.module, kind, "clock_gettime")
        builder.call(clock, [ir.Constant(ir.IntType(32), _CLOCK), held])
        seconds, rest = (builder.extract_value(builder.load(held), i) for i in range(2))
        return builder.add(builder.mul(seconds, ir.Constant(INT, 10**9)), rest)

    return types.int64(), emit


@intrinsic
def call_at(typing, function, job):
    """Call the compiled task at an address with a job's address."""

    def emit(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [INT])
        builder.call(builder.inttoptr(args[0], ir.PointerType(kind)), [args[1]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


def _futex(operation: int) -> Any:
    @intrinsic
    def call(typing, address, value):
        def emit(context, builder, signature, args):
            kind = ir.FunctionType(INT, [INT], var_arg=True)
            function = get_or_insert_function(builder.module, kind, "syscall")
            zero = ir.Constant(INT, 0)
            builder.call(function, [ir.Constant(INT, _FUTEX), args[0], ir.Constant(INT, operation), args[1], zero, zero, zero])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), emit

    return call


if FUTEX:
    futex_wait = _futex(_WAIT)
    """(address, value): sleep until woken, unless the word there is another value"""
    futex_wake = _futex(_WAKE)
    """(address, count): wake so many threads that sleep on the word"""
else:

    @part
    def futex_wait(address, value):
        """Not available."""

    @part
    def futex_wake(address, count):
        """Not available."""


if _CLOCK is None:

    @part
    def rest():
        """Keep polling."""

else:
    _usleep = types.ExternalFunction("usleep", types.int32(types.int32))

    @part
    def rest():
        """Leave the core to others for a moment."""
        _usleep(types.int32(SHORT_MICROSECONDS))
