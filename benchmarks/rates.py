"""The rates that a CPU cannot exceed, measured by loops that do nothing else: fused multiply-adds in registers, and reads.

The loops are compiled in the run that uses them, with the vectors of `jacrec.kernels.cpu`: `CHAINS` independent sums, so that
neither latency nor memory holds the first one up. A rate is the best of many repetitions of a tenth of a millisecond, the two
loops in turn: whatever else the machine does, some of them have a core to themselves. All threads run at once, as a
gradient's do, since cores may be slower together.
"""

import threading
import time
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import types

from jacrec.kernels.cpu.base.host import ACCUMULATORS, OPTIONS, VECTOR_BYTES
from jacrec.kernels.cpu.base.layout import DTYPES
from jacrec.kernels.cpu.base.tiles import INT, Emitter, intrinsic

CHAINS = 16 if ACCUMULATORS == 16 else 12
"""sums side by side: more than latency times units of any processor; 12 leave room for the factors in 16 registers"""
REPETITION = 1e-4
"""seconds"""


class Speeds(NamedTuple):
    """Of all threads at once, each by its best repetition."""

    flops: float
    """operations per second of fused multiply-adds, two each"""
    bytes: float
    """bytes per second read"""


def _sum(e: Emitter, vectors: list):
    """Of all lanes of all vectors: none of them may be left out by the compiler."""
    total = vectors[0]
    for vector in vectors[1:]:
        total = e.builder.fadd(total, vector)
    return e.total(total)


@intrinsic
def chains(typing, like, n, a, b):
    """Σ x after n steps of x ← a·x + b in every lane of `CHAINS` vectors, which begin at 0, 1, 2, …"""
    if n not in types.integer_domain or not like == a == b:
        return None

    def emit(context, builder, signature, args):
        e = Emitter(builder, like)
        _, n, a, b = args
        factor, term = e.spread(a), e.spread(b)
        start = [ir.Constant(e.vector, [float(i)] * e.lanes) for i in range(CHAINS)]
        return _sum(e, e.loop(n, 1, start, lambda _, sums: [e.fma(x, factor, term) for x in sums]))

    return like(like, n, a, b), emit


@intrinsic
def total(typing, like, address, n):
    """The sum of n numbers, a multiple of `CHAINS` vectors."""

    def emit(context, builder, signature, args):
        e = Emitter(builder, like)
        _, address, n = args
        zero = ir.Constant(e.vector, [0.0] * e.lanes)

        def body(i, sums):
            places = [e.offset(address, builder.add(i, ir.Constant(INT, c * e.lanes))) for c in range(CHAINS)]
            return [builder.fadd(x, e.load(place)) for x, place in zip(sums, places, strict=True)]

        return _sum(e, e.loop(n, CHAINS * e.lanes, [zero] * CHAINS, body))

    return like(like, address, n), emit


@cache
def loops(dtype: torch.dtype) -> tuple[Callable[[int, float, float], float], Callable[[int, int, int], float]]:
    """(steps, a, b) -> `chains`, and (times, address, n) -> the sum of n numbers read so often; neither holds the GIL."""
    like = DTYPES[dtype](0)
    number = numba.typeof(like)

    def multiply_add(n, a, b):
        return chains(like, n, a, b)

    def read(times, address, n):
        found = like
        for _ in range(times):
            found += total(like, address, n)
        return found

    compiled = numba.cfunc(number(types.int64, number, number), **OPTIONS)(multiply_add)
    reading = numba.cfunc(number(types.int64, types.int64, types.int64), **OPTIONS)(read)
    return compiled.ctypes, reading.ctypes


def speeds(count: int, dtype: torch.dtype, threads: int, seconds: float = 0.15) -> Speeds:
    """Measure for so many threads, each of which reads about `count` numbers of its own again and again.

    They lie in L1, L2 or beyond, as so many weights do.
    """
    multiply_add, read = loops(dtype)
    lanes = VECTOR_BYTES // dtype.itemsize
    count = max(1, count // (CHAINS * lanes)) * CHAINS * lanes
    flops, size = 2 * CHAINS * lanes, count * dtype.itemsize
    ready, found = threading.Barrier(threads), [(0.0, 0.0)] * threads

    def measure(thread: int) -> None:
        memory = torch.ones(count, dtype=dtype)
        address = memory.data_ptr()
        calls = (lambda n: multiply_add(n, 0.5, 0.25)), (lambda n: read(n, address, count))
        lengths = [repeated(call) for call in calls]
        least = [float("inf")] * 4
        ready.wait()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            for i, (call, length) in enumerate(zip(calls, lengths, strict=True)):
                # what the call itself takes is not the loop's
                least[i] = min(least[i], elapsed(call, length))
                least[2 + i] = min(least[2 + i], elapsed(call, 0))
        multiplying, reading = least[0] - least[2], least[1] - least[3]
        found[thread] = flops * lengths[0] / multiplying, size * lengths[1] / reading

    workers = [threading.Thread(target=measure, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return Speeds(*np.sum(found, 0).tolist())


def repeated(call: Callable[[int], object]) -> int:
    """How many repetitions take about `REPETITION`."""
    n = 1
    while elapsed(call, n) < REPETITION:
        n *= 2
    return n


def elapsed(call: Callable[[int], object], n: int) -> float:
    """Seconds that call(n) takes."""
    started = time.perf_counter()
    call(n)
    return time.perf_counter() - started
