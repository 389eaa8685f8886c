"""Read arrays of numbers from HDF5 files that may be damaged or made by a stranger.

Nothing outside the file is read: external links, external storage and virtual data sets are refused before HDF5 follows
them. What h5py raises for damaged contents (OSError, RuntimeError, KeyError, TypeError and others) becomes a ValueError that
names the file and the key.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jacrec.data.readers.checks import REAL

HOPS = 16
"""soft links followed for one key; more of them form a loop"""
AGAIN = "copy or download the file again"
LOCKED = "another process has it open for writing; wait until that process has closed it"
UNLOCKABLE = "its file system does not support locks; set HDF5_USE_FILE_LOCKING=FALSE"
UNCLOSED = "the program that wrote it has not closed it; if that program was killed, run `h5clear -s` on the file"


class Numbers:
    """An HDF5 data set of real numbers, read slice by slice.

    Raises:
        ValueError: it contains something else, lies in another file, or is damaged; on creation and when it is read.
    """

    def __init__(self, found: Any, where: str):
        self.where, self._found = where, found
        if not isinstance(found, h5py.Dataset):
            raise ValueError(f"{where}: expected an array of numbers, got a {type(found).__name__.lower()}")
        with _reading(where):
            shape, kind, stored = found.shape, found.dtype, (found.external, found.is_virtual)
            self.chunks = found.chunks
        if any(stored):
            raise ValueError(
                f"{where}: expected numbers in the file itself, got a reference to another file; copy them into it"
            )
        if shape is None or kind.kind not in REAL:
            raise ValueError(f"{where}: expected real numbers, got {'nothing' if shape is None else f'type {kind}'}")
        with _reading(where):
            missing = _unwritten(found)
        if missing:
            raise ValueError(f"{where}: expected an array of shape {shape}, got one without {missing} of its bytes; {AGAIN}")
        self.shape: tuple[int, ...] = shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        with _reading(self.where):
            return self._found[rows]


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading.

    Raises:
        OSError: the system does not let us read it.
        ValueError: it is not an HDF5 file, is damaged, or is locked by the program that writes it.
    """
    path.open("rb").close()  # the system's own error, if there is one, is clearer than HDF5's
    try:
        file = h5py.File(path, "r")
    except Exception as error:  # damaged files make h5py raise anything
        if isinstance(error, BlockingIOError):
            raise ValueError(f"{path}: expected a file that is not in use, got a locked one: {LOCKED}") from error
        if "unable to lock file" in str(error):
            raise ValueError(f"{path}: expected a file that HDF5 can lock, got {error}: {UNLOCKABLE}") from error
        if "already open for write" in str(error):
            raise ValueError(f"{path}: expected a closed file, got an open one: {UNCLOSED}") from error
        raise ValueError(
            f"{path}: expected an HDF5 file, got an unreadable file ({error}); copy or download it again"
        ) from error
    with file:
        yield file


def numbers(file: h5py.File, path: Path, key: str) -> Numbers | None:
    """The numbers at `key`; None if the file has no such key.

    Raises:
        ValueError: as `Numbers`.
    """
    found = find(file, path, key)
    return None if found is None else Numbers(found, f"{path}: {key}")


def find(file: h5py.File, path: Path, key: str) -> Any:
    """The object at `key`, or None if there is none. Soft links are followed, external links are refused.

    Raises:
        ValueError: a link out of the file, a link to nothing, a loop of links, or a damaged object.
    """
    where, node, parts, hops = f"{path}: {key}", file, key.split("/"), 0
    while parts:
        part = parts.pop(0)
        if part in ("", "."):
            continue
        if not isinstance(node, h5py.Group):
            raise ValueError(f"{where}: expected a group above {part!r}, got a {type(node).__name__.lower()}")
        with _reading(where):
            link: Any = node.get(part, getlink=True)
        if link is None and not hops:
            return None
        if link is None or hops > HOPS:
            raise ValueError(f"{where}: expected an array, got a link that leads nowhere; write the array itself")
        if isinstance(link, h5py.SoftLink):
            parts, hops = link.path.split("/") + parts, hops + 1
            node = file if link.path.startswith("/") else node
        elif isinstance(link, h5py.HardLink):
            with _reading(where):
                node = node[part]
        else:
            raise ValueError(
                f"{where}: expected an array in the file itself, got a link to another file; copy the array into it"
            )
    return node


def text_attributes(file: h5py.File, path: Path, *keys: str) -> dict[str, str]:
    """Those of the file's attributes `keys` that are strings.

    Raises:
        ValueError: an attribute is damaged.
    """
    found = {}
    for key in keys:
        with _reading(f"{path}: attribute {key}"):
            value = file.attrs.get(key)
            if isinstance(value, str):
                value.encode()  # h5py turns bytes that are no text into something that cannot be printed
                found[key] = value
    return found


def _unwritten(found: h5py.Dataset) -> int:
    """Bytes that should be in the file and are not: HDF5 would return whatever is in memory.

    Parts that were never written at all are not counted: they hold the fill value.
    """
    stored, size = found.id.get_storage_size(), found.id.get_type().get_size()
    if not found.chunks:
        return max(0, found.size * size - stored) if stored else 0
    plan = found.id.get_create_plist()
    if any(plan.get_filter(k)[0] != h5py.h5z.FILTER_SHUFFLE for k in range(plan.get_nfilters())):
        return 0  # sizes vary, and the filters notice
    return max(0, found.id.get_num_chunks() * math.prod(found.chunks) * size - stored)


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Around calls of h5py alone, which raise almost anything for damaged contents."""
    try:
        yield
    except MemoryError as error:
        raise ValueError(
            f"{where}: expected contents that fit into memory, got too many ({error}); use a machine with more memory, or, if the "
            "file does not hold as much, copy or download it again"
        ) from error
    except Exception as error:
        raise ValueError(
            f"{where}: expected readable contents, got damaged ones ({type(error).__name__}: {error}); {AGAIN}"
        ) from error
