"""Helper threads: asleep until a caller posts a job, and dismissed by a caller that never waits long for them.

A thread of another process may take the core of a helper at any moment, for whole time slices of milliseconds. Nothing here
may therefore depend on a helper. Its state is one word, changed by compare-and-swap alone:

    asleep → idle           roused: it polls for a moment (`SPIN`), so that it begins at once when the job comes
    asleep, idle → posted   a caller wants it
    posted → idle           the caller has finished before the helper began; it was never waited for
    posted → running → idle
    running → left          the caller has gone on without it; it comes back by itself

A helper belongs to the caller that holds its lock; where no helper is free (several Python threads decide at once) the caller
works alone. What a helper may still read is kept alive in `held` until it is idle again. After two failures in a row (a
helper was left, or the caller itself lost its core: then another thread would only take it away once more) callers work
alone for a while, and for twice as long after every further one (`Patience`).

Helpers are daemon threads of Python that run compiled code without the GIL. They sleep on a futex; where there is none, on a
semaphore. A forked child has none of its parent's and starts its own. At exit they are stopped, and waited for at most
`EXIT_SECONDS`.
"""

import atexit
import math
import os
import threading
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jacrec.kernels.cpu.base.host import entry, part
from jacrec.kernels.cpu.base.rows import WORD
from jacrec.kernels.cpu.base.tiles import atomic_load, atomic_store, integers
from jacrec.kernels.cpu.base.waiting import FUTEX, call_at, compare_and_swap, futex_wait, futex_wake, nanoseconds, relax, rest
from jacrec.util.processors import processors

IDLE, ASLEEP, POSTED, RUNNING, LEFT = range(5)
"""states of a helper"""
STATE, TASK, JOB, SPIN_LEFT, STOP, RETURNED, BY_FUTEX, ROUSED = 0, 16, 17, 18, 19, 20, 21, 32
"""words of its block; the state has a cache line of its own"""
BLOCK = 48
NOT_BEGUN, DONE, LATE, GONE = range(4)
"""answers: the helper has not begun, has finished, was waited for, or was left"""
CALL_TASK, CALL_JOB, BOUNDED, COUNT, FIRST = range(5)
"""words of a caller's row; the addresses of its helpers' blocks follow, then the answers"""
SPIN, SHORT_SPIN = 1_000_000, 50_000
"""nanoseconds that an idle helper polls before it sleeps: where cores are idle, and after a failure, which says that they are not"""
GRACE = 5_000
"""nanoseconds that a helper takes at most from its last share to the end of its job if it has its core"""
LOST = 0.3 if time.get_clock_info("thread_time").resolution < 1e-5 else math.inf
"""share of its own processor time for which a caller loses its core where other processes want it"""
EXIT_SECONDS = 2.0
KEPT_BYTES = 64 * 2**20
"""memory that a helper keeps between jobs"""
ALIGNED = 16
"""int64 to whose multiples a block is aligned"""


@part
def serve(like, block):
    """A helper's life: returns to Python to be stopped, to sleep where there is no futex, and after it was left."""
    state, words = block + STATE * WORD, integers(block)
    begun = nanoseconds()
    while True:
        found = atomic_load(state)
        # also asleep: it may have been told while it fell asleep
        if found <= ASLEEP and atomic_load(block + STOP * WORD):
            words[RETURNED] = IDLE
            return
        if found == IDLE:
            if nanoseconds() - begun > words[SPIN_LEFT]:
                compare_and_swap(state, IDLE, ASLEEP)
            relax()
        elif found == ASLEEP:
            if not words[BY_FUTEX]:
                words[RETURNED] = ASLEEP
                return
            futex_wait(state, ASLEEP)
            begun = nanoseconds()
        elif compare_and_swap(state, POSTED, RUNNING):
            call_at(words[TASK], words[JOB])
            if not compare_and_swap(state, RUNNING, IDLE):
                words[RETURNED] = LEFT
                return
            begun = nanoseconds()


@part
def rouse(like, block):
    """Wake a helper for a job that will follow; `ROUSED` says whether it was asleep."""
    state = block + STATE * WORD
    roused = compare_and_swap(state, ASLEEP, IDLE)
    if roused and integers(block)[BY_FUTEX]:
        futex_wake(state, 1)
    integers(block)[ROUSED] = 1 if roused else 0


@part
def stop(like, block):
    """Let a helper return as soon as it is idle."""
    atomic_store(block + STOP * WORD, 1)
    rouse(like, block)


@part
def work_together(like, row):
    """Post the helpers' jobs, do the caller's own, and dismiss them; the row's last words say what became of each."""
    words = integers(row)
    for i in range(words[COUNT]):
        block = words[FIRST + i]
        state = block + STATE * WORD
        posted = compare_and_swap(state, IDLE, POSTED)
        if not posted and integers(block)[BY_FUTEX]:
            posted = compare_and_swap(state, ASLEEP, POSTED)
            if posted:
                futex_wake(state, 1)
        words[FIRST + words[COUNT] + i] = DONE if posted else NOT_BEGUN
    begun = nanoseconds()
    call_at(words[CALL_TASK], words[CALL_JOB])
    own = nanoseconds() - begun
    for i in range(words[COUNT]):
        block = words[FIRST + i]
        if words[FIRST + words[COUNT] + i] == DONE:
            words[FIRST + words[COUNT] + i] = _dismiss(block + STATE * WORD, words[BOUNDED], own)


@part
def _dismiss(state, bounded, own):
    """The answer of a helper that was posted; a caller that is not `bounded` waits for one that has begun."""
    if compare_and_swap(state, POSTED, IDLE):
        return NOT_BEGUN
    begun = nanoseconds()
    while atomic_load(state) == RUNNING:
        relax()
        waited = nanoseconds() - begun
        if waited > GRACE and bounded and compare_and_swap(state, RUNNING, LEFT):
            return GONE
        if waited > 10 * GRACE:
            rest()
    return LATE if nanoseconds() - begun > max(10 * GRACE, own // 3) else DONE


def _compiled(function) -> Any:
    return entry(function, np.float32)


def compile_tasks() -> None:
    """Compile what helpers and their callers run, or load it."""
    for function in (serve, rouse, stop, work_together):
        _compiled(function)


class Helper:
    """A thread, its block, and memory of its own. Its lock is held by its caller, until it is idle again."""

    def __init__(self):
        self.lock, self.awake = threading.Lock(), threading.Semaphore(0)
        self.words = np.zeros(BLOCK + ALIGNED, dtype=np.int64)
        self.words = self.words[-self.words.ctypes.data // WORD % ALIGNED :][:BLOCK]
        self.words[SPIN_LEFT], self.words[BY_FUTEX] = SPIN, FUTEX
        self.address = self.words.ctypes.data
        self.held: list[object] = []
        self.memory: Tensor | None = None
        self.row = np.zeros(0, dtype=np.int64)
        self.thread = threading.Thread(target=self._serve, name="jacrec-helper", daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        call = _compiled(serve).ctypes
        while True:
            call(self.address)
            if self.words[RETURNED] == ASLEEP:
                self.awake.acquire()
            elif self.words[RETURNED] == LEFT:
                # a caller that left it may still read what it has written, and holds that memory
                self.held, self.memory = [], None
                self.words[STATE] = IDLE
                self.lock.release()
            else:
                return

    def rouse(self, how=rouse) -> None:
        """Wake it."""
        _compiled(how).ctypes(self.address)
        if self.words[ROUSED] and not self.words[BY_FUTEX]:
            self.awake.release()

    def copy_of(self, job: np.ndarray) -> np.ndarray:
        """A copy of a job's row that lives as long as the helper."""
        if len(self.row) < len(job):
            self.row = np.zeros(len(job), dtype=np.int64)
        self.row[: len(job)] = job
        return self.row

    def space(self, count: int, dtype: torch.dtype) -> int:
        """The address of memory for `count` elements; contents undefined."""
        if self.memory is None or self.memory.dtype != dtype or self.memory.numel() < count:
            self.memory = None
            self.memory = torch.empty(count, dtype=dtype, device="cpu")
        return self.memory.data_ptr()

    def release(self) -> None:
        """Its caller needs it no more."""
        self.held = []
        if self.memory is not None and self.memory.nbytes > KEPT_BYTES:
            self.memory = None
        self.lock.release()


class Patience:
    """Whether to ask helpers at all: after two failures in a row not for `length` jobs, which doubles with every further one."""

    FIRST, LONGEST = 8, 1024

    def __init__(self):
        self.failures, self.length, self.left = 0, self.FIRST, 0

    def allows(self) -> bool:
        """Count a job; whether it may ask helpers."""
        if self.left > 0:
            self.left -= 1
            return False
        return True

    def record(self, failed: bool) -> None:
        """What came of a job that had helpers."""
        if not failed:
            self.failures, self.length = 0, max(self.FIRST, self.length // 2)
            return
        self.failures += 1
        if self.failures >= 2:
            self.left, self.length, self.failures = self.length, min(self.LONGEST, 2 * self.length), 1


class Pool:
    """The process's helpers: started when first needed, at most one for every processor but the caller's."""

    def __init__(self):
        self.helpers: list[Helper] = []
        self.lock, self.patience, self.closed = threading.Lock(), Patience(), False
        self.most: int | None = None

    def take(self, count: int) -> list[Helper]:
        """Up to `count` free helpers, to be released by `work`; none where they have failed lately."""
        if count < 1 or self.closed or not self.patience.allows():
            return []
        if self.most is None:
            self.most = processors() - 1
        count = min(count, self.most)
        if len(self.helpers) < count:
            self._start(count)
        free = []
        try:
            for helper in self.helpers:
                if len(free) == count:
                    break
                if helper.lock.acquire(blocking=False):
                    free.append(helper)
                    if not helper.words[BY_FUTEX]:
                        helper.rouse()
        except BaseException:
            release(None, free)
            raise
        return free

    def rouse(self, count: int) -> None:
        """A job for `count` helpers will follow at once."""
        if self.patience.left <= 0:
            for helper in self.helpers[:count]:
                if helper.words[BY_FUTEX]:
                    helper.rouse()

    def record(self, failed: bool) -> None:
        """Count a job that had helpers; `failed`: they or the caller lost their cores, or were waited for."""
        self.patience.record(failed)
        for helper in self.helpers:
            helper.words[SPIN_LEFT] = SHORT_SPIN if failed else SPIN

    def _start(self, count: int) -> None:
        compile_tasks()  # here, not in the thread
        with self.lock:
            try:
                while len(self.helpers) < count and not self.closed:
                    self.helpers.append(Helper())
            except RuntimeError:  # no thread can be started: at exit, or where the system has no more
                pass

    def close(self) -> None:
        """Stop the helpers, and wait a moment for those that are running."""
        self.closed = True
        for helper in self.helpers:
            helper.rouse(stop)
        end = time.monotonic() + EXIT_SECONDS
        for helper in self.helpers:
            helper.thread.join(max(0.0, end - time.monotonic()))


_pool = Pool()


def pool() -> Pool:
    """This process's helpers."""
    return _pool


def _forget() -> None:
    global _pool
    _pool = Pool()


# a forked child has none of its parent's threads
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
atexit.register(lambda: _pool.close())


def together(task, job: int, helpers: list[Helper], *, bounded: bool) -> np.ndarray:
    """The row of `work_together` for a caller's job. Its last words are the helpers' answers."""
    blocks = [helper.address for helper in helpers]
    return np.array([task.address, job, bounded, len(helpers), *blocks, *[NOT_BEGUN] * len(helpers)], dtype=np.int64)


def work(row: np.ndarray, helpers: list[Helper], jobs: list[int], held: object = None) -> tuple[list[int], bool]:
    """Do the caller's job of a row while the helpers do theirs, at the addresses given; each one's answer, and whether the
    caller lost its core meanwhile.

    Not `bounded`, the caller waits for helpers that have begun. Bounded, it leaves those that are still running: what they may
    read is `held` until they have finished.
    """
    for helper, job in zip(helpers, jobs, strict=True):
        helper.words[TASK], helper.words[JOB] = row[CALL_TASK], job
        helper.held = [held]
    begun, own = time.perf_counter(), time.thread_time()
    _compiled(work_together).ctypes(row.ctypes.data)
    own = time.thread_time() - own
    return answers_of(row, helpers), time.perf_counter() - begun > (1 + LOST) * own


def release(row: np.ndarray | None, helpers: list[Helper]) -> None:
    """The caller needs the helpers no more. One that is `GONE` releases itself; the row knows, whatever interrupted the caller.

    row: None if there was none yet.
    """
    for helper, answer in zip(helpers, answers_of(row, helpers), strict=True):
        if answer != GONE:
            helper.release()


def answers_of(row: np.ndarray | None, helpers: list[Helper]) -> list[int]:
    """The helpers' answers in a row of `together`."""
    return [NOT_BEGUN] * len(helpers) if row is None else row[FIRST + len(helpers) :].tolist()
