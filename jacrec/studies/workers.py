"""Local worker processes: each imports once and does one job after the other; one that dies takes only its job with it.

LocalExecutor(workers, lock)
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import connection
from pathlib import Path
from typing import Any

from jacrec.studies.executors import GRACE, THREAD_VARIABLES, Failed, Finished, Message, Progress, perform
from jacrec.studies.jobs import Job
from jacrec.studies.ledger import worker_lock
from jacrec.util import locks

REPORT_EVERY = 0.3
"""seconds between a worker's reports of its progress"""


class LocalExecutor:
    """`workers` processes of this machine, started when they are first needed.

    Every worker holds a lock file of its own as long as it lives, whose name is `lock` with its number appended.
    """

    def __init__(self, workers: int, lock: Path, threads: int = 1):
        self.slots, self.lock, self.threads = workers, lock, threads
        self.workers: list[_Worker] = []
        self.deaths = 0

    def submit(self, job: Job) -> None:
        """Give the job to an idle worker."""
        idle = next((w for w in self.workers if w.job is None), None)
        if idle is None:
            with _thread_limits(self.threads):
                idle = _Worker(self._free_number(), self.lock)
            self.workers.append(idle)
        idle.begin(job)

    def wait(self, seconds: float) -> list[Message]:
        """What the workers say, or that one is dead.

        Raises:
            ChildProcessError: workers die one after the other, and none gets anything done.
        """
        if self.deaths > self.slots + 2:  # what the last of them did has been told by the call before
            raise ChildProcessError(f"workers: expected processes that live, {self.deaths} died in a row; try fewer")
        found: list[Message] = []
        handles = [h for w in self.workers for h in (w.pipe, w.process.sentinel)]
        ready = set(connection.wait(handles, timeout=seconds)) if handles else set()
        for worker in list(self.workers):
            if worker.pipe in ready:
                found += worker.messages()
            if worker.process.sentinel in ready:
                found += worker.messages()  # its last words
                self.workers.remove(worker)
                found += worker.obituary()
                self.deaths += 1
        if any(isinstance(m, Finished) for m in found):
            self.deaths = 0
        return found

    def close(self) -> None:
        """Interrupt the workers, wait for their checkpoints, kill what is left; a second interruption kills at once."""
        try:
            for worker in self.workers:
                if worker.job is not None and worker.process.is_alive():
                    worker.process.terminate()
                worker.pipe.close()  # which ends those that wait for a job
            end = time.monotonic() + GRACE
            for worker in self.workers:
                worker.process.join(max(0.0, end - time.monotonic()))
        finally:
            for worker in self.workers:
                worker.process.kill()
                worker.process.join()
            self.workers.clear()

    def _free_number(self) -> int:
        return min(set(range(1, len(self.workers) + 2)) - {w.number for w in self.workers})


class _Worker:
    """One process, seen from the parent."""

    def __init__(self, number: int, lock: Path):
        context = multiprocessing.get_context("spawn")
        self.number = number
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, number, str(lock)), name=f"worker-{number}", daemon=True)
        self.process.start()
        theirs.close()
        self.job: Job | None = None
        self.began = 0.0

    def begin(self, job: Job) -> None:
        self.job, self.began = job, time.perf_counter()
        with contextlib.suppress(BrokenPipeError):  # it is dead, which its sentinel tells
            self.pipe.send(job)

    def messages(self) -> list[Message]:
        found: list[Message] = []
        with contextlib.suppress(EOFError, OSError):
            while self.pipe.poll():
                found.append(self.pipe.recv())
                if not isinstance(found[-1], Progress):
                    self.job = None
        return found

    def obituary(self) -> list[Message]:
        self.process.join()
        self.pipe.close()
        if self.job is None:
            return []
        code = self.process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = "; killed by the system when memory ran out? Try fewer --workers" if code == -signal.SIGKILL else ""
        seconds = time.perf_counter() - self.began
        return [Failed(self.job.id, f"the worker process ended ({how}){hint}", "", seconds, str(self.number))]


def _work(pipe: Any, number: int, lock: str) -> None:
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    busy = ValueError(f"{lock}: expected no other worker {number}, got one")
    with (
        contextlib.suppress(KeyboardInterrupt, EOFError, BrokenPipeError, ConnectionResetError),
        locks.locked(worker_lock(Path(lock), number), busy),
    ):
        while True:
            job: Job = pipe.recv()
            pipe.send(perform(job, str(number), _Reporter(job.id, pipe)))


class _Reporter:
    """Tells the parent of progress, not too often."""

    def __init__(self, id: str, pipe: Any):
        self.id, self.pipe, self.next = id, pipe, 0.0

    def __call__(self, share: float) -> None:
        now = time.monotonic()
        if now >= self.next:
            self.next = now + REPORT_EVERY
            with contextlib.suppress(OSError):  # the parent is closing: the work at hand ends in order
                self.pipe.send(Progress(self.id, share))


def _interrupt(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def _thread_limits(threads: int) -> Iterator[None]:
    """Libraries in processes that are started here take this many threads: they look when they are loaded."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
