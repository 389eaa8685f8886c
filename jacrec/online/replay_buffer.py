"""The replay buffer on disk: transitions appended during control, which survive a crash.

What can be lost, depending on `ReplayConfig`:

* If the process is killed: with flush_every = 1, nothing that `append` has returned from; with flush_every = n, at most the
  last n transitions and those appended while the disk was busy.
* If the machine stops: what was not yet synced, i.e. at most the last `sync_seconds` and what was appended during an fsync;
  with sync_seconds = 0, nothing that `append` has returned from.

replay.bin contains the transitions; replay.lock is an empty file, locked by the process that appends. An incomplete record at
the end is removed when the replay buffer is opened for appending, and reported in `found`.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jacrec.data.transitions import DatasetInfo, Transitions
from jacrec.online.append_writer import AppendWriter
from jacrec.online.config import ReplayConfig
from jacrec.online.records import HEADER, LAST, TERMINAL, RecordFile, header, seal
from jacrec.util import locks
from jacrec.util.files import naming, user_path, write_bytes

FILE, LOCK = "replay.bin", "replay.lock"


@dataclass(frozen=True)
class ReplayContents:
    """Contents of a replay buffer when it was opened."""

    transitions: int
    """intact transitions"""
    torn_bytes: int
    """bytes of incomplete records removed from the end"""
    damaged: int
    """records that fail their check; they stay in the file and are skipped"""
    dropped: int = 0
    """transitions beyond those to be kept, removed from the end"""

    def __str__(self) -> str:
        torn = f"; {self.torn_bytes} bytes of an incomplete record were removed" if self.torn_bytes else ""
        damaged = f"; {self.damaged} damaged records are skipped" if self.damaged else ""
        dropped = f"; {self.dropped} of an interrupted episode were dropped, since it is played again" if self.dropped else ""
        return f"{self.transitions} transitions{torn}{damaged}{dropped}"


class ReplayReader:
    """Reads the replay buffer in a folder, memory-mapped, while another process may append to it.

    Raises:
        FileNotFoundError: no replay buffer there.
        ValueError: the file is not a replay buffer.
    """

    def __init__(self, folder: str | Path):
        path = user_path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(f"no replay buffer at {path}; `jacrec deploy` writes one")
        self.records = RecordFile(path)
        self.look()

    def look(self) -> int:
        """Current number of transitions in the file, including damaged ones."""
        return self.records.refresh()

    def transitions(self, start: int = 0, stop: int | None = None, name: str = "replay") -> Transitions:
        """Copies of the intact transitions start … stop − 1, with the semantics of a slice."""
        return as_transitions(self.records.map[self.records.sound(start, stop)], name)


class OnlineReplay:
    """The replay buffer of a deployment, for a single writer; transitions (s, a, r, s', terminal, last, episode) in float32.

    Uses memory for one record, or for at most `config.buffer`; the file grows by 28 + 4 (2 d + m) bytes per transition.

    Args:
        folder: folder of the file; created if missing.
        state_dim, action_dim: d, m.
        config: how it is written to disk.

    Raises:
        ValueError: the existing file has other dimensions, or another process appends to it.
    """

    def __init__(self, folder: str | Path, state_dim: int, action_dim: int, config: ReplayConfig | None = None):
        self.config = config or ReplayConfig()
        self.path = user_path(folder) / FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: int | None = None
        with contextlib.ExitStack() as opened:
            # before the existence check: otherwise two processes could each create a file, and one would be lost
            opened.enter_context(_locked(self.path))
            if not self.path.is_file():
                _create(self.path, header(state_dim, action_dim))
            self._file = os.open(self.path, os.O_RDWR)
            opened.callback(os.close, self._file)
            self._repair(self._file, state_dim, action_dim)
            self._opened = opened.pop_all()
        self._one = np.zeros(1, self._reader.dtype)
        self._appended = self._reader.count
        end = HEADER + self._appended * self._reader.dtype.itemsize
        self._writer = AppendWriter(self._file, end, self.config)

    def _repair(self, file: int, state_dim: int, action_dim: int) -> None:
        self._reader = RecordFile(self.path)
        if (self._reader.state_dim, self._reader.action_dim) != (state_dim, action_dim):
            raise ValueError(
                f"{self.path}: expected a replay buffer with d = {state_dim}, m = {action_dim}, got d = "
                f"{self._reader.state_dim}, m = {self._reader.action_dim}; choose another folder"
            )
        count = self._reader.refresh()
        torn = os.fstat(file).st_size - (HEADER + count * self._reader.dtype.itemsize)
        if torn:
            self._truncate(file, count)
        self._count_contents(torn)

    def _truncate(self, file: int, count: int) -> None:
        os.ftruncate(file, HEADER + count * self._reader.dtype.itemsize)
        os.fsync(file)
        self._reader = RecordFile(self.path)  # the old one's mapping reaches beyond the new end
        self._reader.refresh()

    def _count_contents(self, torn: int, dropped: int = 0) -> None:
        sound = self._reader.sound()
        self.found = ReplayContents(len(sound), torn, self._reader.count - len(sound), dropped)
        self.next_episode = int(self._reader.map["episode"][sound].max()) + 1 if len(sound) else 0
        """the first unused episode number"""

    def keep(self, count: int) -> None:
        """Drop all transitions but the first `count`, damaged ones included, and report it in `found`."""
        self.flush()
        if self._file is None or count >= self._appended:
            return
        dropped, self._appended = self._appended - count, count
        self._truncate(self._file, count)
        self._count_contents(self.found.torn_bytes, dropped)
        self._writer.end = HEADER + count * self._reader.dtype.itemsize

    def __len__(self) -> int:
        """Number of transitions appended, including damaged ones and those of earlier processes."""
        return self._appended

    @property
    def waiting(self) -> int:
        """Number of transitions appended but not yet written, which a killed process would lose."""
        return self._writer.waiting

    def append(self, state, action, reward, next_state, terminal, episode, last=None) -> None:
        """Append one transition or n transitions.

        Args:
            state, next_state: (d,) or (n, d).
            action: (m,) or (n, m), in [-1, 1].
            reward: () or (n,).
            terminal: () or (n,), whether the task ended.
            episode: () or (n,), number of the episode.
            last: () or (n,), whether the episode ended for any reason (default: `terminal`).

        Raises:
            ValueError: the shapes do not match.
            OSError: the disk does not accept the transitions; earlier ones are unaffected.
        """
        n = 1 if np.ndim(reward) == 0 else len(reward)
        records = self._one if n == 1 else np.zeros(n, self._one.dtype)
        try:
            records["state"], records["action"], records["next_state"] = state, action, next_state
            records["reward"], records["episode"] = reward, episode
        except ValueError as error:
            d, m = self._reader.state_dim, self._reader.action_dim
            raise ValueError(
                f"append: expected states ({n}, {d}), actions ({n}, {m}) and next states ({n}, {d}), got other shapes ({error})"
            ) from None
        flags = np.multiply(terminal, TERMINAL, dtype=np.uint32)
        records["flags"] = flags | np.multiply(terminal if last is None else last, LAST, dtype=np.uint32)
        records["number"] = np.arange(self._appended, self._appended + n)
        seal(records)
        with naming(self.path, records.nbytes):
            self._writer.append(records.tobytes(), n)
        self._appended += n

    def transitions(self, start: int = 0, stop: int | None = None, name: str = "replay") -> Transitions:
        """As `ReplayReader.transitions`; waiting transitions are written first."""
        self.flush()
        self._reader.refresh()
        return as_transitions(self._reader.map[self._reader.sound(start, stop)], name)

    def flush(self) -> None:
        """Write everything appended so far.

        Raises:
            OSError: the disk does not accept it.
        """
        with naming(self.path):
            self._writer.flush()

    def sync(self) -> None:
        """`flush`, then fsync."""
        self.flush()
        with naming(self.path):
            os.fsync(self._writer.file)

    def close(self) -> None:
        """`sync`, then close the file; idempotent."""
        if self._file is None:
            return
        try:
            with naming(self.path):
                self._writer.close()
        finally:
            self._file = None
            self._opened.close()

    def __enter__(self) -> "OnlineReplay":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def as_transitions(records: np.ndarray, name: str) -> Transitions:
    """Records (n,) as transitions; the next action comes from the following record of the same episode, if there is one."""
    order = np.argsort(records["episode"], kind="stable")
    before, after = order[:-1], order[1:]
    follows = (records["episode"][before] == records["episode"][after]) & (records["flags"][before] & LAST == 0)
    # a damaged record in between is missing
    follows &= (records["next_state"][before] == records["state"][after]).all(1)
    has_next = np.zeros(len(records), bool)
    has_next[before[follows]] = True
    next_action = np.zeros_like(records["action"])
    next_action[before[follows]] = records["action"][after[follows]]
    return Transitions(
        state=records["state"].copy(),
        action=records["action"].copy(),
        reward=records["reward"].copy(),
        next_state=records["next_state"].copy(),
        next_action=next_action,
        terminal=records["flags"] & TERMINAL != 0,
        has_next_action=has_next,
        episode=records["episode"].astype(np.int64),
        info=DatasetInfo(name, source="a controller's replay"),
    )


def _locked(path: Path) -> contextlib.AbstractContextManager[None]:
    """Lock the replay buffer at `path`: two writers would overwrite each other's transitions."""
    busy = ValueError(
        f"{path}: expected a replay buffer without a writer, got one in use; stop the other deployment, or choose another folder"
    )
    return locks.locked(path.with_name(LOCK), busy)


def _create(path: Path, start: bytes) -> None:
    """Create an empty replay buffer, atomically."""
    write_bytes(path, start)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the directory entry must survive a power failure, too
    finally:
        os.close(folder)
