"""Compiled code kept on disk: found again by all sources of the CPU kernels, checked before it is used, never required.

Damaged files are compiled and written again. Where nothing can be written, the code lives in this process, and one warning says so.
"""

import contextlib
import hashlib
import logging
import pickle
import warnings
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

SOURCES = sorted(Path(__file__).parent.parent.rglob("*.py"))
DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()
VERSIONS = (DIGEST, numba.__version__, llvmlite.__version__)
"""what compiled code depends on beside the processor"""
_CHECKSUM = hashlib.sha256().digest_size
_warned: list[str] = []
_log = logging.getLogger("jacrec")


class CheckedFile(IndexDataCacheFile):
    """Numba's files, with a checksum before the code: a flipped byte in it would be run."""

    def _save_data(self, name: str, data: Any) -> None:
        content = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(hashlib.sha256(content).digest() + content)

    def _load_data(self, name: str) -> Any:
        path = Path(self._data_path(name))
        stored = path.read_bytes()
        if hashlib.sha256(stored[_CHECKSUM:]).digest() != stored[:_CHECKSUM]:
            raise ValueError(f"{path}: expected the checksum of its content")
        return pickle.loads(stored[_CHECKSUM:])


class SourceCache(FunctionCache):
    """Numba's cache on disk, keyed by all sources of the CPU kernels: its own key does not cover called functions.

    Raises:
        RuntimeError: no folder is writable.
    """

    def __init__(self, function, key: tuple):
        super().__init__(function)
        self.key = key
        given: Any = self._cache_file
        self._cache_file = CheckedFile(given._cache_path, self._impl.filename_base, given._source_stamp)

    def _index_key(self, sig, codegen):
        return (sig, codegen.magic_tuple(), self.key)

    def load_overload(self, sig, target_context):
        """The compiled code, or None where there is none that is whole."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # whatever a damaged pickle raises
            told = " ".join(str(error).split()) or type(error).__name__
            _log.warning("the compiled code in %s is damaged (%s); it is compiled again", self.cache_path, told)
            with contextlib.suppress(OSError):
                Path(self._cache_file._index_path).unlink()
            return None

    def save_overload(self, sig, data):
        """Write the compiled code, or warn that it cannot be written."""
        try:
            super().save_overload(sig, data)
        except Exception as error:  # beside OSError: an index that is damaged and cannot be replaced
            warn_not_kept(f"{self.cache_path}: {error}")


def warn_not_kept(reason: str) -> None:
    """Warn, once in a process, that compiled code is not kept."""
    if _warned:
        return
    _warned.append(reason)
    warnings.warn(
        f"the compiled CPU kernels cannot be kept on disk, so every process compiles them again, for up to half a minute: {reason}; "
        "set NUMBA_CACHE_DIR to a folder that can be written and has room",
        RuntimeWarning,
        stacklevel=2,
    )
