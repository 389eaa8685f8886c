"""Files that are whole or not there, and errors that name the file."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jacrec.util.content import expect_content

FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
"""what writing answers where there is no room: the disk, the allowed size of a file, or the quota is exhausted"""


def user_path(path: str | Path) -> Path:
    """A path that a caller gives, with `~` for the home folder as in a shell.

    Raises:
        ValueError: it is no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"path: expected text or a pathlib.Path, got {type(path).__name__}")
    with contextlib.suppress(RuntimeError):  # no such user: it is a name
        return Path(path).expanduser()
    return Path(path)


@contextlib.contextmanager
def naming(path: Path, size: int | None = None) -> Iterator[None]:
    """Let errors of writing `path` name it, and say how much room is missing.

    Args:
        size: bytes that are being written; None: unknown.

    Raises:
        OSError: from the block; a whole sentence if there is no room, in which case its `errno` is None.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise _no_room(path, size, error) from error
        if error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _no_room(path: Path, size: int | None, error: OSError) -> OSError:
    free = shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.is_dir())).free
    missing = "" if size is None or free >= size else f", {size - free} bytes are missing"
    needed = "room" if size is None else f"room for {size} bytes"
    return OSError(f"{path}: expected {needed}, got {error.strerror!r}{missing}; free some space and repeat the call")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file: a kill or an error at any moment leaves the old file or the new one. Makes the folder if there is none.

    Raises:
        OSError: it cannot be written. Nothing is left of the attempt.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "expected the name of a file, got a folder", str(path))
    part = path.with_name(path.name + ".part")
    with naming(path, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # or a loss of power could leave an empty file under the final name
            os.replace(part, path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()
            raise


def expect_room(folder: Path, size: int) -> None:
    """Check that `size` bytes can be written in a folder, by reserving them where the file system can; nothing is left.

    For libraries that do not survive a full disk.

    Raises:
        OSError: there is no room; a whole sentence.
    """
    probe = folder / f".room-{os.getpid()}"
    with naming(folder, size):
        if shutil.disk_usage(folder).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            with probe.open("wb") as file:  # quotas and the allowed size of a file show only now
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in FULL:
                raise
        finally:
            probe.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of text in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """`write_bytes` of JSON."""
    write_text(path, json.dumps(content))


def read_text(path: Path, remedy: str) -> str:
    """The text of a file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not UTF-8. The error ends with the `remedy`.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, got byte {error.start} of another kind; {remedy}") from None


def read_json(path: Path, kind: Any, remedy: str) -> Any:
    """The content of a JSON file, of a type as described at `jacrec.util.content.mismatch`.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: it is damaged, or its content is of another type. The error ends with the `remedy`.
    """
    try:
        content = json.loads(read_text(path, remedy))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got something else or half a file ({error}); {remedy}") from None
    expect_content(content, kind, path, remedy)
    return content


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, skipping lines cut short by an interruption; [] if there is no file.

    Raises:
        ValueError: another line is not a JSON object, or the file is not text in UTF-8.
    """
    found = []
    text = read_text(path, "delete the file") if path.is_file() else ""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        with contextlib.suppress(json.JSONDecodeError, RecursionError):
            found.append(json.loads(line))
            if isinstance(found[-1], dict):
                continue
        if not line.startswith("{"):  # as a line does that was cut short
            raise ValueError(f"{path}: expected JSON objects, got something else in line {number}; delete that line")
    return found


def append_json_line(path: Path, content: Any) -> None:
    """Append a line to a JSON Lines file; a last line cut short by an interruption is terminated first."""
    line = json.dumps(content).encode() + b"\n"
    with naming(path, len(line)), path.open("ab+") as file:
        torn = False
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + line)
