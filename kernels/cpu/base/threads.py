"""Threads and workspaces of the CPU kernels: as many threads as torch would use, without changing any setting.

They are not torch's own: OpenMP's barriers wait through whole time slices for a thread whose core another process has taken.
A decision has helpers that it can do without (`jacrec.kernels.cpu.base.helpers`, `jacrec.kernels.cpu.base.shares`).
"""

import os
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import torch
from torch import Tensor

from jacrec.kernels.cpu.base.helpers import LATE, pool, release, together, work

LEAST_WORK = 2e6
"""multiply–adds that justify another thread: about 40 µs of one core"""

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()
_own = threading.local()


def _forget_pool() -> None:
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


# a forked child has none of its parent's threads
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def run(task, job: np.ndarray, threads: int) -> None:
    """Call the compiled `task` on the job, in up to `threads` threads at once, which divide the work among themselves.

    The caller waits for threads that have begun, and for no other.
    """
    helpers, address = pool().take(threads - 1), job.ctypes.data
    if not helpers:
        task.ctypes(address)
        return
    row = None
    try:
        row = together(task, address, helpers, bounded=False)
        answers, lost = work(row, helpers, [address] * len(helpers))
        pool().record(lost or LATE in answers)
    finally:
        release(row, helpers)


def _wait_for(futures: list[Future]) -> None:
    try:
        wait(futures)
    except KeyboardInterrupt:
        wait(futures)
        raise


def run_together(call, jobs: Iterable[np.ndarray]) -> None:
    """call(address) for every job, all running at once, so that they may wait for one another.

    `call` is a compiled task's `ctypes`, which releases the GIL.
    """
    global _pool
    mine, *others = (job.ctypes.data for job in jobs)
    futures = []
    try:
        if others:
            with _lock:
                if _pool is None or _pool._max_workers < len(others):
                    _pool = ThreadPoolExecutor(len(others), thread_name_prefix="jacrec")
                for address in others:
                    futures.append(_pool.submit(call, address))
        call(mine)
    finally:
        # in any case: they use the caller's memory
        _wait_for(futures)


def workspace(count: int, dtype: torch.dtype) -> Tensor:
    """Memory of the calling thread for at least `count` elements, reused by its next call; contents undefined."""
    held: Tensor | None = getattr(_own, "memory", None)
    if held is None or held.dtype != dtype or held.numel() < count:
        held = _own.memory = torch.empty(count, dtype=dtype, device="cpu")
    return held


def forget_workspace() -> None:
    """Drop the calling thread's memory."""
    _own.memory = None


def threads_for(rows: int, work: float) -> int:
    """How many threads `rows` rows of `work` multiply–adds each justify, at most torch's own number."""
    return max(1, min(torch.get_num_threads(), rows, int(rows * work / LEAST_WORK)))
