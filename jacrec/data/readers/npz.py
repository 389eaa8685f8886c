"""Read arrays of numbers from .npz archives that may be damaged."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from jacrec.data.readers.checks import expect_numbers


@contextmanager
def open_npz(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """The archive, open for reading.

    Raises:
        OSError: the system does not let us read it.
        ValueError: it is no archive.
    """
    # numpy does not close a file that it opened itself and cannot read
    with path.open("rb") as opened:
        try:
            archive = np.load(opened, allow_pickle=False)
        except Exception as error:  # a truncated or changed archive makes numpy raise anything
            raise _unreadable(path, error) from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise _unreadable(path, "it is a single array")
        with archive:
            yield archive


def array_of(archive: np.lib.npyio.NpzFile, path: Path, key: str) -> np.ndarray | None:
    """The array at `key`; None if the archive has no such key.

    Raises:
        ValueError: it is damaged, or does not consist of real numbers.
    """
    if key not in archive.files:
        return None
    value = _member(archive, path, key)
    expect_numbers(value, str(path), key)
    return value


def texts_of(archive: np.lib.npyio.NpzFile, path: Path, *keys: str) -> dict[str, str]:
    """Those of the entries `keys` that are single strings."""
    found = {key: _member(archive, path, key) for key in keys if key in archive.files}
    return {key: str(value) for key, value in found.items() if value.ndim == 0 and value.dtype.kind == "U"}


def _member(archive: np.lib.npyio.NpzFile, path: Path, key: str) -> np.ndarray:
    try:
        value = archive[key]
    except Exception as error:  # as above
        raise _unreadable(path, f"{key}: {type(error).__name__}: {error}") from error
    if not isinstance(value, np.ndarray):
        raise _unreadable(path, f"{key}: it is no array")
    return value


def _unreadable(path: Path, reason: object) -> ValueError:
    return ValueError(f"{path}: expected a .npz archive, got an unreadable file ({reason}); copy or create it again")
