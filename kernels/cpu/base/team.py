"""Several threads on one tile: each takes some columns of every layer, and they meet before the next layer reads them all.

For fewer rows than threads: one particle's matrices are read at the rate of all cores' caches instead of one's. A crew is a
tuple (who, size, door): the thread's number, how many there are, and the address of their flags, `FLAG` int64 apart.
"""

import os

from numba.core import types

from jacrec.kernels.cpu.base.host import VECTOR_BYTES, part
from jacrec.kernels.cpu.base.tiles import atomic_load, atomic_store, fetch_add, size_of

ALONE = (0, 1, 0)
FLAG = 16
"""int64 from one thread's flag to the next: two cache lines, since processors fetch lines in pairs"""
PATIENCE = 200_000
"""looks, each of a few cycles, that the first thread waits for the others before it does the work alone"""
LOOKS = 4_000
"""looks before a waiting thread lets others run"""

if os.name == "posix":
    give_way = types.ExternalFunction("sched_yield", types.int32())
else:

    @part
    def give_way():
        """Nothing: a waiting thread keeps looking."""
        return 0


@part
def columns(like, crew, padded):
    """The thread's share of `padded` columns, whole vectors: first, last + 1."""
    who, size, _ = crew
    lanes = VECTOR_BYTES // size_of(like)
    vectors = padded // lanes
    return vectors * who // size * lanes, vectors * (who + 1) // size * lanes


@part
def meet(crew):
    """Wait until the whole crew is here; what each has written the others then read.

    Every thread raises its own flag by one and looks at the others': a line changes hands once, and nothing is locked.
    """
    who, size, door = crew
    if size == 1:
        return
    mine = door + who * FLAG * 8
    meeting = atomic_load(mine) + 1
    atomic_store(mine, meeting)
    for other in range(size):
        looks = 0
        while atomic_load(door + other * FLAG * 8) < meeting:
            looks += 1
            if looks > LOOKS:
                give_way()


@part
def muster(who, size, arrivals, decision):
    """How large the crew is: `size` if all come in good time, else 1 for the first thread and 0 for the others.

    arrivals, decision: addresses of int64, 0 before. A team of threads may be smaller than was asked for; nobody waits for
    a thread that does not come.
    """
    fetch_add(arrivals)
    if who == 0:
        looks = 0
        while atomic_load(arrivals) < size and looks < PATIENCE:
            looks += 1
        everybody = atomic_load(arrivals) >= size
        atomic_store(decision, size if everybody else size * 0 + 1)
        return size if everybody else size * 0 + 1
    looks = 0
    decided = atomic_load(decision)
    while decided == 0:
        looks += 1
        if looks > LOOKS:
            give_way()
        decided = atomic_load(decision)
    return decided if decided > 1 else decided * 0


@part
def meet_at(counter, threads, meeting):
    """Wait until all threads have come to their `meeting`-th meeting (1, 2, …) at a counter, an int64 that was zero before.

    For threads that do not share a crew's flags, and meet seldom.
    """
    if threads == 1:
        return
    fetch_add(counter)
    looks = 0
    while atomic_load(counter) < meeting * threads:
        looks += 1
        if looks > LOOKS:
            give_way()
