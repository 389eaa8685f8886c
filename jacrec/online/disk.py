"""Bytes to the end of a file without waiting for the disk."""

import os
import threading
import time
from collections import deque

from jacrec.online.config import ReplayConfig


class Disk:
    """The end of an open file, for one thread that appends; another thread of its own writes and syncs.

    With flush_every = 1 `append` writes (into the system's memory, where it outlives this process), and the thread only
    syncs. With more, `append` only queues.

    Args:
        file: its descriptor, which stays the caller's.
        end: where to go on.
    """

    def __init__(self, file: int, end: int, config: ReplayConfig):
        self.file, self.end, self.config = file, end, config
        self.failure: OSError | None = None
        """why the thread's latest attempt did not succeed"""
        self._queue: deque[tuple[bytes, int]] = deque()
        self._queued = self._drained = 0  # records ever; the one counts the appending thread, the other whoever writes
        self._unsynced = self._closed = False
        self._writing, self._wake = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._serve, name="replay", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Records that were appended and are not yet written."""
        return self._queued - self._drained

    def append(self, raw: bytes, records: int) -> None:
        """`raw` holds so many records.

        Raises:
            OSError: the disk does not take it; what was appended before is unharmed.
            ValueError: closed.
        """
        if self._closed:
            raise ValueError("append: expected an open replay, got a closed one")
        if self.config.flush_every == 1:
            self._write(raw)
            self._unsynced = True
            if self.config.sync_seconds == 0:
                self._sync()
            return
        waiting = self.waiting
        if waiting + records > self.config.buffer:
            raise OSError(
                f"replay: {waiting} transitions wait for a disk that takes none ({self.failure or 'no answer yet'}); "
                "this one was not appended"
            )
        self._queue.append((raw, records))
        self._queued += records
        if waiting + records >= self.config.flush_every:
            self._wake.set()

    def flush(self) -> None:
        """Write what waits.

        Raises:
            OSError: the disk does not take it.
        """
        with self._writing:
            pieces = [self._queue[i] for i in range(len(self._queue))]
            if not pieces:
                return
            self._write(b"".join(raw for raw, _ in pieces))
            for _ in pieces:  # only now: what could not be written still waits
                self._queue.popleft()
            self._drained += sum(records for _, records in pieces)
            self._unsynced = True

    def close(self) -> None:
        """Write and sync everything, and end the thread."""
        self._closed = True
        self._wake.set()
        self._thread.join()
        self.flush()
        self._sync()

    def _write(self, raw: bytes) -> None:
        """At the place of the next record: what an error cuts short is overwritten by the next attempt."""
        place, rest = self.end, memoryview(raw)
        while rest:
            done = os.pwrite(self.file, rest, place)
            place, rest = place + done, rest[done:]
        self.end = place

    def _sync(self) -> None:
        if self._unsynced:
            self._unsynced = False  # what is written from here on waits for the next one
            try:
                os.fsync(self.file)
            except OSError:
                self._unsynced = True
                raise

    def _serve(self) -> None:
        synced, period = time.monotonic(), self.config.sync_seconds or 1.0
        while not self._closed:
            self._wake.wait(max(0.0, synced + period - time.monotonic()))  # the rest: it may have been woken in between
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
