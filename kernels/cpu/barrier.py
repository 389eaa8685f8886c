"""Where the threads of one kernel wait for one another; they are started by `jacrec.kernels.cpu.threads.run_together`."""

from llvmlite import ir
from numba.core import types

from jacrec.kernels.cpu.host import part
from jacrec.kernels.cpu.tiles import INT, intrinsic

SPINS = 2000
"""looks at the counter before the processor is offered to others: some 10 µs"""

give_way = types.ExternalFunction("sched_yield", types.int32())
"""let another thread run"""


@intrinsic
def _arrive(typing, counter):
    """Add one to the int64 at an address; what the thread has written before is there for those who see it."""

    def emit(context, builder, signature, args):
        return builder.atomic_rmw("add", builder.inttoptr(args[0], INT.as_pointer()), ir.Constant(INT, 1), "seq_cst")

    return types.int64(types.int64), emit


@intrinsic
def _arrived(typing, counter):
    """The int64 at an address, as the other threads left it."""

    def emit(context, builder, signature, args):
        return builder.load_atomic(builder.inttoptr(args[0], INT.as_pointer()), "seq_cst", 8)

    return types.int64(types.int64), emit


@part
def meet(counter, threads, meeting):
    """Wait until all threads have come to their `meeting`-th barrier (1, 2, …).

    The int64 at the address `counter` is zero before the first.
    """
    if threads == 1:
        return
    _arrive(counter)
    tries = 0
    while _arrived(counter) < meeting * threads:
        tries += 1
        if tries > SPINS:
            give_way()
