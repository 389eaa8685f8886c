"""What the fused training kernels stand on: torch's own matrix product, a barrier, and compilation that is kept on disk.

torch for x86 carries MKL, whose products run at the processor's peak already at 64 rows; the kernels call them from inside
compiled code, one thread each. Where torch carries another library the kernels do not serve, and `why_not` says so.
"""

import ctypes
import hashlib
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

compiled_in: Any = intrinsic  # its functions are called with one argument less than they are written with
SOURCES = [Path(__file__).with_name(f"{name}.py") for name in ("native", "fused_layers", "fused_rebrac")]
DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()
SYMBOLS = {"sgemm_": "jacrec_sgemm", "dgemm_": "jacrec_dgemm", "MKL_Set_Num_Threads_Local": "jacrec_threads"}
"""in torch's library; under which name the compiled code calls it"""
PRODUCTS = {types.float32: ("jacrec_sgemm", ir.FloatType()), types.float64: ("jacrec_dgemm", ir.DoubleType())}
INT, BYTE, WORD = ir.IntType(32), ir.IntType(8), ir.IntType(64)


@cache
def why_not() -> str | None:
    """Why the fused training kernels cannot run here; None where they can. The first call looks the symbols up."""
    if not sys.platform.startswith("linux"):
        return f"the fused training kernels need Linux, got {sys.platform}"
    if not torch.backends.mkl.is_available():
        return "the fused training kernels need a torch built with MKL, got one without"
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        library = ctypes.CDLL(str(path))
        for name, ours in SYMBOLS.items():
            llvmlite.binding.add_symbol(ours, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    except (OSError, AttributeError) as error:
        return f"the fused training kernels need MKL's products out of {path.name}, got: {error}"
    return None


class _SourceCache(FunctionCache):
    """Numba's cache on disk, keyed by all sources of the kernels: its own key misses what a called function is made of."""

    def _index_key(self, sig, codegen):
        return (*super()._index_key(sig, codegen), DIGEST)


def part(function: Callable) -> Any:
    """Decorator of what is compiled into its callers. Sums may be re-ordered; NaN and infinity keep their meaning."""
    return numba.njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"}, boundscheck=False)(function)


def entry(function: Callable) -> Any:
    """Decorator of what Python calls: releases the GIL, compiled once per dtype and kept on disk."""
    dispatcher = part(function)
    try:
        dispatcher._cache = _SourceCache(function)
    except RuntimeError as error:  # no folder can be written
        warnings.warn(f"the training kernels are compiled anew by every process: {error}", RuntimeWarning, stacklevel=2)
    return dispatcher


@compiled_in
def product(typing, like, turn_x, turn_w, m, n, k, x, x_stride, w, w_stride, y, y_stride):
    """y (m, n) = op(x) (m, k) op(w) (k, n), row-major; op transposes where `turn_…` is true.

    Addresses in bytes, strides in elements, `like` any number of the element's type.
    """
    numbers = (m, n, k, x, x_stride, w, w_stride, y, y_stride)
    if like not in PRODUCTS or not all(isinstance(t, types.Integer) for t in numbers):
        return None

    def emit(context, builder, signature, args):
        name, real = PRODUCTS[like]
        _, turn_x, turn_w, m, n, k, x, x_stride, w, w_stride, y, y_stride = args

        def kept(value):
            return builder.bitcast(cgutils.alloca_once_value(builder, value), BYTE.as_pointer())

        def letter(turn):
            return kept(builder.select(turn, ir.Constant(BYTE, ord("T")), ir.Constant(BYTE, ord("N"))))

        def count(value):
            return kept(builder.trunc(value, INT))

        def pointer(value):
            return builder.inttoptr(value, BYTE.as_pointer())

        kind = ir.FunctionType(ir.VoidType(), [BYTE.as_pointer()] * 13)
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        one, zero = kept(ir.Constant(real, 1.0)), kept(ir.Constant(real, 0.0))
        # the library counts along columns: there y is (n, m), and the factors change places
        builder.call(function, [letter(turn_w), letter(turn_x), count(n), count(m), count(k), one, pointer(w), count(w_stride),
                                pointer(x), count(x_stride), zero, pointer(y), count(y_stride)])  # fmt: skip
        return context.get_dummy_value()

    flags = (types.boolean, types.boolean)
    return types.void(like, *flags, *[types.int64] * 9), emit


library_threads = types.ExternalFunction("jacrec_threads", types.int32(types.int32))
"""how many threads the library's products take in the calling thread; answers with the number before (0: the process's)"""
give_way = types.ExternalFunction("sched_yield", types.int32())
"""let another thread run"""


@compiled_in
def _arrive(typing, counter):
    """Add one to the counter at an address, for all threads to see."""
    if not isinstance(counter, types.Integer):
        return None

    def emit(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], WORD.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(WORD, 1), "seq_cst")

    return types.int64(types.int64), emit


@compiled_in
def _arrived(typing, counter):
    """The counter at an address, as the other threads left it."""
    if not isinstance(counter, types.Integer):
        return None

    def emit(context, builder, signature, args):
        return builder.load_atomic(builder.inttoptr(args[0], WORD.as_pointer()), "seq_cst", 8)

    return types.int64(types.int64), emit


@part
def meet(counter, threads, meeting):
    """Wait until all threads have come to their `meeting`-th barrier (1, 2, …); `counter` (int64) is zero before the first."""
    if threads == 1:
        return
    place = counter.ctypes.data
    _arrive(place)
    tries = 0
    while _arrived(place) < meeting * threads:
        tries += 1
        if tries > 2000:
            give_way()


class Team:
    """The threads that carry out a kernel together: the caller's own and helpers that wait between the calls."""

    def __init__(self):
        self.pool, self.helpers = None, 0
        self.counter = np.zeros(8, dtype=np.int64)  # a cache line of its own

    def run(self, kernel: Callable, threads: int, *args) -> None:
        """kernel(thread, threads, counter, *args) on every thread 0 … threads − 1; returns when all have."""
        self.counter[0] = 0
        if threads > 1 and self.helpers != threads - 1:
            self.pool, self.helpers = ThreadPoolExecutor(threads - 1, "jacrec-training"), threads - 1
        # every thread is there before the first one waits for another
        waiting = [self.pool.submit(kernel, t, threads, self.counter, *args) for t in range(1, threads)] if self.pool else []
        kernel(0, threads, self.counter, *args)
        for future in waiting:
            future.result()
