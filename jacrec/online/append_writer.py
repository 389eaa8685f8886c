"""Appending to a file without waiting for the disk."""

import os
import threading
import time
from collections import deque

from jacrec.online.config import ReplayConfig


class AppendWriter:
    """Appends records of one thread to an open file; a background thread writes and syncs.

    With flush_every = 1, `append` writes to the page cache, which survives the process, and the thread only syncs. With larger
    values, `append` only queues.

    Args:
        file: file descriptor, owned by the caller.
        end: position to append at.
    """

    def __init__(self, file: int, end: int, config: ReplayConfig):
        self.file, self.end, self.config = file, end, config
        self.failure: OSError | None = None
        """error of the thread's latest attempt, None if it succeeded"""
        self._queue: deque[tuple[bytes, int]] = deque()
        self._queued = self._drained = 0  # total records, counted by the appending and by the writing thread
        self._unsynced = self._closed = False
        self._writing, self._wake = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._serve, name="replay", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of records appended but not yet written."""
        return self._queued - self._drained

    def append(self, raw: bytes, records: int) -> None:
        """Append `raw`, which contains this many records.

        Raises:
            OSError: the disk does not accept it; earlier records are unaffected.
            ValueError: the writer is closed.
        """
        if self._closed:
            raise ValueError("append: expected an open replay buffer, got a closed one")
        if self.config.flush_every == 1:
            self._write(raw)
            self._unsynced = True
            if self.config.sync_seconds == 0:
                self._sync()
            return
        waiting = self.waiting
        if waiting + records > self.config.buffer:
            raise OSError(
                f"replay buffer: expected a disk that accepts writes, got {waiting} transitions waiting "
                f"({self.failure or 'no response yet'}); this one was not appended"
            )
        self._queue.append((raw, records))
        self._queued += records
        if waiting + records >= self.config.flush_every:
            self._wake.set()

    def flush(self) -> None:
        """Write all waiting records.

        Raises:
            OSError: the disk does not accept them.
        """
        with self._writing:
            pieces = [self._queue[i] for i in range(len(self._queue))]
            if not pieces:
                return
            self._write(b"".join(raw for raw, _ in pieces))
            for _ in pieces:  # only now, so that records are kept if the write fails
                self._queue.popleft()
            self._drained += sum(records for _, records in pieces)
            self._unsynced = True

    def close(self) -> None:
        """Write and sync everything, and stop the thread."""
        self._closed = True
        self._wake.set()
        self._thread.join()
        self.flush()
        self._sync()

    def _write(self, raw: bytes) -> None:
        """Write at the end of the last complete record; a partial write is overwritten by the next attempt."""
        position, rest = self.end, memoryview(raw)
        while rest:
            done = os.pwrite(self.file, rest, position)
            position, rest = position + done, rest[done:]
        self.end = position

    def _sync(self) -> None:
        if self._unsynced:
            self._unsynced = False  # later writes need another fsync
            try:
                os.fsync(self.file)
            except OSError:
                self._unsynced = True
                raise

    def _serve(self) -> None:
        synced, period = time.monotonic(), self.config.sync_seconds or 1.0
        while not self._closed:
            self._wake.wait(max(0.0, synced + period - time.monotonic()))  # the remainder, after an earlier wake-up
            self._wake.clear()
            try:
                self.flush()
                if time.monotonic() - synced >= period:
                    self._sync()
                    synced = time.monotonic()
                self.failure = None
            except OSError as error:
                self.failure = error
                time.sleep(0.1)
