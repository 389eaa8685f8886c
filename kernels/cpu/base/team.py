"""Thread teams: several threads on one tile, each with some columns of every layer, and a barrier between layers.

For fewer rows than threads: one particle's matrices are read at the rate of all cores' caches instead of one's.
"""

import os
from typing import NamedTuple

from numba.core import types

from jacrec.kernels.cpu.base.host import VECTOR_BYTES, part
from jacrec.kernels.cpu.base.rows import WORD
from jacrec.kernels.cpu.base.tiles import atomic_load, atomic_store, fetch_add, size_of
from jacrec.kernels.cpu.base.waiting import nanoseconds, relax

FLAG = 16
"""int64 from one thread's flag to the next: two cache lines, since processors fetch lines in pairs"""
JOIN = 50_000
"""nanoseconds after which the first thread stops waiting for the others and works alone"""
YIELD_SPINS = 4_000
"""polls after which a waiting thread yields its core"""
STALL_SPINS = YIELD_SPINS + 400
"""polls after which a thread of the team must have lost its core"""
STALLED = 1
"""from a thread's flag to the word that says so"""


class Team(NamedTuple):
    """A thread's place in its team."""

    thread: int
    size: int
    flags: int  # address of the barrier's flags, one for each thread, `FLAG` int64 apart


ALONE = Team(0, 1, 0)

if os.name == "posix":
    yield_core = types.ExternalFunction("sched_yield", types.int32())
else:

    @part
    def yield_core():
        """Keep polling."""
        return 0


@part
def columns(like, team, padded):
    """The thread's share of `padded` columns in whole vectors: first, last + 1."""
    lanes = VECTOR_BYTES // size_of(like)
    vectors = padded // lanes
    return vectors * team.thread // team.size * lanes, vectors * (team.thread + 1) // team.size * lanes


@part
def barrier(team):
    """Wait for the whole team; every thread then sees what the others wrote before.

    Each thread increments its own flag and polls those of the others: a cache line changes hands once, nothing is locked.
    """
    if team.size == 1:
        return
    mine = team.flags + team.thread * FLAG * WORD
    generation = atomic_load(mine) + 1
    atomic_store(mine, generation)
    for other in range(team.size):
        spins = 0
        while atomic_load(team.flags + other * FLAG * WORD) < generation:
            spins += 1
            if spins > YIELD_SPINS:
                yield_core()
            if spins == STALL_SPINS:
                atomic_store(mine + STALLED * WORD, 1)


@part
def join_team(thread, size, arrivals, agreed):
    """The size of the thread's team: `size` if all threads arrive in time, else 1 for thread 0 and 0 for the others.

    arrivals, agreed: addresses of int64 that are initially 0. A thread may lose its core or be missing, so thread 0 waits for
    a bounded time only.
    """
    fetch_add(arrivals)
    if thread == 0:
        begun = nanoseconds()
        while atomic_load(arrivals) < size and nanoseconds() - begun < JOIN:
            relax()
        team_size = size if atomic_load(arrivals) >= size else 1
        atomic_store(agreed, team_size)
        return team_size
    spins = 0
    team_size = atomic_load(agreed)
    while team_size == 0:
        spins += 1
        if spins > YIELD_SPINS:
            yield_core()
        team_size = atomic_load(agreed)
    return team_size if team_size > 1 else 0


@part
def counter_barrier(counter, threads, generation):
    """Wait until all threads have reached barrier number `generation` (1, 2, …) of a counter, an int64 that was 0 before.

    For threads that are not a team and synchronise rarely.
    """
    if threads == 1:
        return
    fetch_add(counter)
    spins = 0
    while atomic_load(counter) < generation * threads:
        spins += 1
        if spins > YIELD_SPINS:
            yield_core()
