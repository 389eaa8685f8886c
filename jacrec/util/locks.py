"""Lock files that keep a second process out. The operating system releases them however their holder ends."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from jacrec.util.caller import warn_caller

UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""what locking answers on a file system without locks"""


class NoLocksError(OSError):
    """The file system does not support locks."""


def acquire(path: Path, *, required: bool = False) -> Callable[[], None] | None:
    """Take the lock file `path`, without waiting.

    Args:
        path: made if it does not exist; its folder must.
        required: raise on a file system without locks, instead of a warning.

    Returns:
        The function that releases the lock, as its disappearance does; None if it is held elsewhere, in this process or
        another.

    Raises:
        FileNotFoundError: the folder does not exist.
        NoLocksError: `required`, and the file system does not support locks.
    """
    if not path.parent.is_dir():  # which filelock would make
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    # any thread may release it; no fallback to a file whose existence is the lock, which would outlive a killed process
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        where = f"{path.parent}: expected a file system with locks, got one without ({error.strerror})"
        if required:
            raise NoLocksError(f"{where}; use a folder on a local disk") from error
        warn_caller(f"{where}; make sure that no other process writes there", RuntimeWarning)
        return _release_nothing
    return lock.release


@contextlib.contextmanager
def locked(path: Path, busy: Exception, *, required: bool = False) -> Iterator[None]:
    """Hold the lock file `path`; as `acquire`, but raises `busy` if it is held elsewhere."""
    release = acquire(path, required=required)
    if release is None:
        raise busy
    try:
        yield
    finally:
        release()


def is_locked(path: Path) -> bool:
    """Whether someone holds the lock file `path`."""
    if not path.is_file():
        return False
    release = acquire(path)
    if release is None:
        return True
    release()
    return False


def _release_nothing() -> None:
    pass
