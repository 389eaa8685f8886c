"""File format of the replay buffer: a header, then records of fixed size, each with its number and a checksum.

bytes 0–63     b"jacrec replay 1\\n", then d, m, bytes per record (little-endian uint32), CRC-32 of these 28 bytes, zeros
bytes 64 + i·b the record of transition i: number, episode, flags, reward, s, a, s', CRC-32 of the preceding bytes

Numbers are little-endian. The check fails for records that are truncated, empty (zeros, as left by a file system after a
power failure) or otherwise different from what was appended as number i.
"""

import struct
import zlib
from pathlib import Path

import numpy as np

MAGIC = b"jacrec replay 1\n"
HEADER = 64
TERMINAL, LAST = 1, 2
_sizes = struct.Struct("<III")
_checksum = struct.Struct("<I")


def record_dtype(state_dim: int, action_dim: int) -> np.dtype:
    """One transition: 28 + 4 (2 d + m) bytes."""
    return np.dtype(
        [
            ("number", "<i8"),
            ("episode", "<i8"),
            ("flags", "<u4"),
            ("reward", "<f4"),
            ("state", "<f4", (state_dim,)),
            ("action", "<f4", (action_dim,)),
            ("next_state", "<f4", (state_dim,)),
            ("checksum", "<u4"),
        ]
    )


def header(state_dim: int, action_dim: int) -> bytes:
    """The file's first `HEADER` bytes."""
    checked = MAGIC + _sizes.pack(state_dim, action_dim, record_dtype(state_dim, action_dim).itemsize)
    return (checked + _checksum.pack(zlib.crc32(checked))).ljust(HEADER, b"\0")


def read_header(path: Path) -> tuple[int, int]:
    """state_dim and action_dim of the replay buffer at `path`.

    Raises:
        ValueError: the file is not a replay buffer, or its header is damaged.
    """
    with path.open("rb") as file:
        start = file.read(HEADER)
    checked = len(MAGIC) + _sizes.size
    if (
        len(start) == HEADER
        and start.startswith(MAGIC)
        and start[checked : checked + 4] == _checksum.pack(zlib.crc32(start[:checked]))
    ):
        d, m, _ = _sizes.unpack_from(start, len(MAGIC))
        return d, m
    raise ValueError(f"{path}: expected a replay buffer of jacrec, got another file or a damaged header; choose another folder")


def seal(records: np.ndarray) -> None:
    """Write the checksums of records (n,) in place."""
    size = records.dtype.itemsize
    raw = memoryview(records.view(np.uint8).reshape(-1))  # pyright: ignore[reportArgumentType]
    for i in range(len(records)):
        _checksum.pack_into(raw, (i + 1) * size - 4, zlib.crc32(raw[i * size : (i + 1) * size - 4]))


def valid(records: np.ndarray, first: int) -> np.ndarray:
    """Which of the records (n,) are intact and have the numbers first, first + 1, …: (n,) bool."""
    size = records.dtype.itemsize
    raw = memoryview(np.ascontiguousarray(records).view(np.uint8).reshape(-1))  # pyright: ignore[reportArgumentType]
    sums = np.fromiter((zlib.crc32(raw[i * size : (i + 1) * size - 4]) for i in range(len(records))), np.uint32, len(records))
    return (sums == records["checksum"]) & (records["number"] == np.arange(first, first + len(records)))


class RecordFile:
    """The memory-mapped records of a file that may be growing; each record is checked once.

    `count` is the number of known records: later ones are truncated, not yet written, or damaged up to the end of the file.
    `damaged` lists the numbers of records below `count` that fail their check.
    """

    BLOCK = 8192

    def __init__(self, path: Path):
        self.path = path
        self.state_dim, self.action_dim = read_header(path)
        self.dtype = record_dtype(self.state_dim, self.action_dim)
        self.count = 0
        self.damaged: list[int] = []
        self.map = np.empty(0, self.dtype)

    def refresh(self) -> int:
        """Check the records added since the last call; the number of known records."""
        complete = (self.path.stat().st_size - HEADER) // self.dtype.itemsize
        if complete > len(self.map):
            self.map = np.memmap(self.path, self.dtype, "r", HEADER, (complete,))
        pending: list[int] = []
        for start in range(self.count, complete, self.BLOCK):
            good = valid(self.map[start : min(start + self.BLOCK, complete)], start)
            for number in np.flatnonzero(~good) + start:
                pending.append(int(number))
            if good.any():
                self.count = start + int(np.flatnonzero(good)[-1]) + 1
                self.damaged += [number for number in pending if number < self.count]
                pending = [number for number in pending if number >= self.count]
        return self.count

    def sound(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The numbers of the intact records within [start, stop), ascending."""
        start, stop, _ = slice(start, stop).indices(self.count)
        numbers = np.arange(start, stop)
        return numbers[~np.isin(numbers, self.damaged)] if self.damaged else numbers
