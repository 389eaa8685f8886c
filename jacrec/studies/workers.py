"""Executor with worker processes on this machine.

A worker imports jacrec once and performs one job after another; if it dies, only its current job fails.
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
from jacrec.util.signals import handle_signals

REPORT_EVERY = 0.3
"""minimum seconds between two progress reports of a worker"""


class LocalExecutor:
    """Up to `workers` processes, started on demand with `threads` threads each.

    Every worker holds a lock file of its own as long as it lives, whose name is `lock` with its number appended.
    """

    def __init__(self, workers: int, lock: Path, threads: int = 1):
        self.slots, self.lock, self.threads = workers, lock, threads
        self.workers: list[_Worker] = []
        self.deaths = 0  # consecutive ones, without a finished job in between

    def submit(self, job: Job) -> None:
        """Give the job to an idle worker."""
        idle = next((w for w in self.workers if w.job is None), None)
        if idle is None:
            with _thread_limits(self.threads):
                idle = _Worker(self._free_number(), self.lock)
            self.workers.append(idle)
        idle.begin(job)

    def wait(self, seconds: float) -> list[Message]:
        """Messages of the workers, including failures of workers that died.

        Raises:
            ChildProcessError: workers die one after another without finishing a job.
        """
        if self.deaths > self.slots + 2:  # the previous call has reported the last death
            raise ChildProcessError(f"workers: expected running processes, {self.deaths} died in a row; use fewer workers")
        found: list[Message] = []
        handles = [h for w in self.workers for h in (w.pipe, w.process.sentinel)]
        ready = set(connection.wait(handles, timeout=seconds)) if handles else set()
        for worker in list(self.workers):
            if worker.pipe in ready:
                found += worker.messages()
            if worker.process.sentinel in ready:
                found += worker.messages()  # sent before it died
                self.workers.remove(worker)
                found += worker.failure()
                self.deaths += 1
        if any(isinstance(m, Finished) for m in found):
            self.deaths = 0
        return found

    def close(self) -> None:
        """Interrupt the workers, wait for their checkpoints, then kill the rest; a second interrupt kills at once."""
        try:
            for worker in self.workers:
                if worker.job is not None and worker.process.is_alive():
                    worker.process.terminate()
                worker.pipe.close()  # idle workers exit
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
    """The parent's view of a worker process."""

    def __init__(self, number: int, lock: Path):
        context = multiprocessing.get_context("spawn")
        self.number = number
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, number, str(lock)), name=f"worker-{number}", daemon=True)
        self.process.start()
        theirs.close()
        self.job: Job | None = None
        self.began = 0.0
        self.started = False
        """whether it has sent anything"""

    def begin(self, job: Job) -> None:
        self.job, self.began = job, time.perf_counter()
        with contextlib.suppress(BrokenPipeError):  # it has died: `wait` finds out by its sentinel
            self.pipe.send(job)

    def messages(self) -> list[Message]:
        """Everything received since the last call."""
        found: list[Message] = []
        with contextlib.suppress(EOFError, OSError):
            while self.pipe.poll():
                found.append(self.pipe.recv())
                self.started = True
                if not isinstance(found[-1], Progress):
                    self.job = None
        return found

    def failure(self) -> list[Message]:
        """The failure of the current job, if any, of a worker that has died."""
        self.process.join()
        self.pipe.close()
        if self.job is None:
            return []
        code = self.process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = "; if the system ran out of memory, use fewer --workers" if code == -signal.SIGKILL else ""
        if code == 1 and not self.started:
            hint = '; a script that sweeps needs `if __name__ == "__main__":`, since every worker imports it again'
        seconds = time.perf_counter() - self.began
        return [Failed(self.job.id, f"the worker process ended ({how}){hint}", "", seconds, str(self.number))]


def _work(pipe: Any, number: int, lock: str) -> None:
    """Main function of a worker process."""
    handle_signals()
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    busy = ValueError(f"{lock}: expected no other worker {number}, got one")
    with (
        contextlib.suppress(KeyboardInterrupt, EOFError, BrokenPipeError, ConnectionResetError),
        locks.locked(worker_lock(Path(lock), number), busy),
    ):
        while True:
            job: Job = pipe.recv()
            pipe.send(perform(job, str(number), _Reporter(job.id, pipe)))


class _Reporter:
    """Sends progress to the parent, at most every `REPORT_EVERY` seconds."""

    def __init__(self, id: str, pipe: Any):
        self.id, self.pipe, self.next = id, pipe, 0.0

    def __call__(self, share: float) -> None:
        now = time.monotonic()
        if now >= self.next:
            self.next = now + REPORT_EVERY
            with contextlib.suppress(OSError):  # the parent is closing and will interrupt this worker
                self.pipe.send(Progress(self.id, share))


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def _thread_limits(threads: int) -> Iterator[None]:
    """Limit the threads of numerical libraries in processes started inside the block."""
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
