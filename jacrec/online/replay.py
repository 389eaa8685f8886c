"""The controller's own transitions on disk: appended during control, there after a crash.

    OnlineReplay(folder, state_dim, action_dim)   .append(...)  .transitions(...)  .sync()  .close()
    ReplayReader(folder)                          .look() .transitions(...): of another process, while it grows

What a crash takes, by `ReplayConfig`:

* the process is killed: with flush_every = 1 nothing that `append` returned from; with flush_every = n at most the n last
  transitions, and those appended while the disk was busy.
* the machine stops: what was not yet synced, at most the last `sync_seconds` and what was appended while an fsync was under
  way; with sync_seconds = 0 nothing that `append` returned from.

replay.bin holds the transitions; replay.lock is empty, and locked by the one that appends.

A torn tail is cut off when the replay is opened for appending, and what was found is told in `found`.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jacrec.data.transitions import DatasetInfo, Transitions
from jacrec.online.config import ReplayConfig
from jacrec.online.disk import Disk
from jacrec.online.records import HEADER, LAST, TERMINAL, RecordFile, header, seal
from jacrec.util import locks
from jacrec.util.files import atomic_write

FILE, LOCK = "replay.bin", "replay.lock"


@dataclass(frozen=True)
class Found:
    """What was in the folder when the replay was opened."""

    transitions: int
    """sound ones"""
    torn_bytes: int
    """cut off the end: of records that were never completed"""
    damaged: int
    """records among the others that do not pass their check; they stay in the file and are left out"""

    def __str__(self) -> str:
        torn = f"; a torn end of {self.torn_bytes} bytes was cut off" if self.torn_bytes else ""
        damaged = f"; {self.damaged} damaged records are left out" if self.damaged else ""
        return f"{self.transitions} transitions{torn}{damaged}"


class ReplayReader:
    """The replay of a folder for reading, while another process may append to it; mapped into memory, not loaded.

    Raises:
        FileNotFoundError: no replay there.
        ValueError: the file is no replay.
    """

    def __init__(self, folder: str | Path):
        path = Path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(f"no replay at {path}; `jacrec deploy` writes one")
        self.records = RecordFile(path)
        self.look()

    def look(self) -> int:
        """Number of transitions in the file by now, damaged ones included."""
        return self.records.look()

    def transitions(self, start: int = 0, stop: int | None = None, name: str = "replay") -> Transitions:
        """Copies of the sound transitions number start … stop − 1, in the order of their numbers; as a slice counts."""
        return as_transitions(self.records.map[self.records.sound(start, stop)], name)


class OnlineReplay:
    """The replay of one deployment, for one writer; transitions (s, a, r, s', terminal, last, episode), float32.

    Memory: one record, or at most `config.buffer` of them; the file grows by 28 + 4 (2 d + m) bytes per transition.

    Args:
        folder: of the file; made where there is none.
        state_dim, action_dim: d, m.
        config: how it is brought to disk.

    Raises:
        ValueError: a replay of other dimensions, or another process appends to it.
    """

    def __init__(self, folder: str | Path, state_dim: int, action_dim: int, config: ReplayConfig | None = None):
        self.config = config or ReplayConfig()
        self.path = Path(folder) / FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: int | None = None
        with contextlib.ExitStack() as opened:
            # before the replay is looked for: two that find none would each make one, and one's be lost with all it holds
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
        self._disk = Disk(self._file, end, self.config)

    def _repair(self, file: int, state_dim: int, action_dim: int) -> None:
        self._reader = RecordFile(self.path)
        if (self._reader.state_dim, self._reader.action_dim) != (state_dim, action_dim):
            raise ValueError(
                f"{self.path}: expected a replay of d = {state_dim}, m = {action_dim}, got one of d = "
                f"{self._reader.state_dim}, m = {self._reader.action_dim}; name another folder"
            )
        count = self._reader.look()
        end = HEADER + count * self._reader.dtype.itemsize
        torn = os.fstat(file).st_size - end
        if torn:
            self._reader.map = np.empty(0, self._reader.dtype)  # nothing may point behind the end
            os.ftruncate(file, end)
            os.fsync(file)
            self._reader.look()
        sound = self._reader.sound()
        self.found = Found(len(sound), torn, count - len(sound))
        self.next_episode = int(self._reader.map["episode"][sound].max()) + 1 if len(sound) else 0
        """the first number that no episode has"""

    def __len__(self) -> int:
        """Transitions appended, those of earlier processes and damaged ones included."""
        return self._appended

    @property
    def waiting(self) -> int:
        """Transitions that were appended and are not yet written: a killed process loses these."""
        return self._disk.waiting

    def append(self, state, action, reward, next_state, terminal, episode, last=None) -> None:
        """Append a transition, or n of them.

        Args:
            state, next_state: (d,) or (n, d).
            action: (m,) or (n, m), in [-1, 1].
            reward, terminal, episode: () or (n,); terminal: the task ended here; episode: its number.
            last: () or (n,), the episode ended here for whatever reason; where not given, where it is terminal.

        Raises:
            ValueError: arrays that do not fit each other.
            OSError: the disk does not take them; those appended before are unharmed.
        """
        n = 1 if np.ndim(reward) == 0 else len(reward)
        records = self._one if n == 1 else np.zeros(n, self._one.dtype)
        try:
            records["state"], records["action"], records["next_state"] = state, action, next_state
            records["reward"], records["episode"] = reward, episode
        except ValueError as error:
            d, m = self._reader.state_dim, self._reader.action_dim
            raise ValueError(
                f"append: expected {n} states and successors of {d} and actions of {m} numbers ({error})"
            ) from None
        flags = np.multiply(terminal, TERMINAL, dtype=np.uint32)
        records["flags"] = flags | np.multiply(terminal if last is None else last, LAST, dtype=np.uint32)
        records["number"] = np.arange(self._appended, self._appended + n)
        seal(records)
        self._disk.append(records.tobytes(), n)
        self._appended += n

    def transitions(self, start: int = 0, stop: int | None = None, name: str = "replay") -> Transitions:
        """As `ReplayReader.transitions`; what still waits in memory is written first."""
        self.flush()
        self._reader.look()
        return as_transitions(self._reader.map[self._reader.sound(start, stop)], name)

    def flush(self) -> None:
        """Write everything appended so far.

        Raises:
            OSError: the disk does not take it.
        """
        self._disk.flush()

    def sync(self) -> None:
        """`flush`, and see it on the disk."""
        self._disk.flush()
        os.fsync(self._disk.file)

    def close(self) -> None:
        """`sync`, and let go of the file; a second time does nothing."""
        if self._file is None:
            return
        try:
            self._disk.close()
        finally:
            self._file = None
            self._opened.close()

    def __enter__(self) -> "OnlineReplay":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def as_transitions(records: np.ndarray, name: str) -> Transitions:
    """Records (n,) as transitions; the next action is that of the next record of the same episode, where it goes on there."""
    order = np.argsort(records["episode"], kind="stable")
    before, after = order[:-1], order[1:]
    follows = (records["episode"][before] == records["episode"][after]) & (records["flags"][before] & LAST == 0)
    # a damaged record between the two is left out
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
    """Keep a second process from appending to the replay at `path`; two would overwrite each other's transitions."""
    busy = ValueError(
        f"{path}: expected a replay that no other process appends to, got one in use; stop the other deployment, or choose "
        "another folder"
    )
    return locks.locked(path.with_name(LOCK), busy, required=True)


def _create(path: Path, start: bytes) -> None:
    """The empty replay: whole, or not there."""
    with atomic_write(path) as part:
        part.write_bytes(start)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name too has to outlive a loss of power
    finally:
        os.close(folder)
