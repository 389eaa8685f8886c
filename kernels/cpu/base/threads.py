"""Threads and workspaces of the CPU kernels: as many threads as torch would use, without changing any setting.

If torch uses an OpenMP library with GNU's interface, the kernels run on torch's own threads: they are awake when torch has
just used them, and do not compete with it for the cores. Elsewhere a pool of Python threads is used.
"""

import ctypes
import os
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LEAST_WORK = 2e6
"""multiply–adds that justify another thread: about 40 µs of one core"""

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()
_own = threading.local()
_forked = False


def _forget_pool() -> None:
    global _pool, _lock, _forked
    _pool, _lock, _forked = None, threading.Lock(), True


# a forked child has none of its parent's threads, which OpenMP does not notice: it uses its own pool
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


@cache
def openmp_parallel():
    """GOMP_parallel of the OpenMP library that torch has loaded, or None."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    home = Path(torch.__file__).parent
    folders = (f"{home}{os.sep}", f"{home.parent / 'torch.libs'}{os.sep}", f"{home.parents[3]}{os.sep}lib{os.sep}lib")
    paths = {line.split(maxsplit=5)[-1].strip() for line in maps.read_text().splitlines() if "/" in line}
    for path in sorted(path for path in paths if path.startswith(folders)):
        if any(name in Path(path).name for name in ("libgomp", "libiomp", "libomp")):
            try:
                function = ctypes.CDLL(path).GOMP_parallel
            except (OSError, AttributeError):
                continue
            function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            function.restype = None
            return function
    return None


def run(task, job: np.ndarray, threads: int) -> None:
    """Call the compiled `task` on the job, in `threads` threads at once, which divide the work among themselves."""
    address = job.ctypes.data
    if threads == 1:
        task.ctypes(address)
    elif not _forked and (parallel := openmp_parallel()) is not None:
        parallel(task.address, address, threads, 0)
    else:
        run_together(task.ctypes, [job] * threads)


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
