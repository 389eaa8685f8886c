"""What a study's folder remembers beside its results: failures, the log, and the lock.

read_failure(job)  note_failure(job, failed)  forget_failure(job)  Log(folder)  locked(folder)  at_work(folder)
"""

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jacrec.studies.executors import Failed, Finished
from jacrec.studies.jobs import Job
from jacrec.util.files import write_json

LOCK, WORKERS_LOCK, LOG = ".lock", ".workers.lock", "log.jsonl"
PATIENCE = 30.0
"""seconds that are waited for workers of a sweep that was killed"""


@dataclass(frozen=True)
class Failure:
    """Why a job's result is not there."""

    error: str
    traceback: str
    attempts: int


def read_failure(job: Job) -> Failure | None:
    """The failure noted for a job."""
    if not job.failure.is_file():
        return None
    return Failure(**json.loads(job.failure.read_text(encoding="utf-8")))


def note_failure(job: Job, failed: Failed) -> Failure:
    """Count another failed attempt."""
    before = read_failure(job)
    failure = Failure(failed.error, failed.traceback, (before.attempts if before else 0) + 1)
    write_json(job.failure, vars(failure))
    return failure


def forget_failure(job: Job) -> None:
    """The job has succeeded."""
    job.failure.unlink(missing_ok=True)


class Log:
    """STUDY/log.jsonl: one line per finished or failed job."""

    def __init__(self, folder: Path):
        self.path = folder / LOG
        if self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
            self._append("\n")  # a kill cut the last line short

    def write(self, message: Finished | Failed) -> None:
        """Append the job's line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "job": message.id,
            "outcome": "finished" if isinstance(message, Finished) else "failed",
            "seconds": round(message.seconds, 3),
            "worker": message.worker,
        }
        line |= {"error": message.error} if isinstance(message, Failed) else {"note": message.note}
        self._append(json.dumps(line) + "\n")

    def _append(self, text: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Keep a second sweep out of the folder; the file that workers hold a shared lock on.

    The operating system lets go of both locks whatever way their holders end. They serve one machine (a shared file system
    may or may not pass them on): several machines work on a study as one Ray cluster.

    Raises:
        ValueError: another sweep is at work here, or workers of one that was killed do not end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as own, (folder / WORKERS_LOCK).open("a") as theirs:
        if not _taken(own):
            raise ValueError(f"{folder}: expected no sweep at work on this study, got one; wait for it, or stop it")
        end = time.monotonic() + PATIENCE
        while not _taken(theirs):
            if time.monotonic() > end:
                raise ValueError(f"{folder}: workers of an earlier sweep are still at work there; end them first")
            time.sleep(0.1)
        fcntl.flock(theirs, fcntl.LOCK_UN)
        yield folder / WORKERS_LOCK


def at_work(folder: Path) -> bool:
    """Whether a sweep is working on the folder."""
    if not (folder / LOCK).is_file():
        return False
    with (folder / LOCK).open("a") as file:
        return not _taken(file)


def _taken(file: Any) -> bool:
    """Take the lock, if nobody has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
