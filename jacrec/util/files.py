"""Files that are whole or not there."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def user_path(path: str | Path) -> Path:
    """A path that a caller gives, with `~` for the home folder as in a shell."""
    with contextlib.suppress(RuntimeError):  # no such user: it is a name
        return Path(path).expanduser()
    return Path(path)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Where to write a file that is to be `path`: a kill at any moment leaves the old file or the new one.

    Makes the folder where there is none. After an error in the block the old file stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    yield part
    with part.open("rb") as file:
        os.fsync(file.fileno())  # or a loss of power could leave an empty file under the final name
    os.replace(part, path)


def write_text(path: Path, text: str) -> None:
    """Write a file as `whole` has it."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """`write_text` of JSON."""
    write_text(path, json.dumps(content))


def read_json_lines(path: Path) -> list[Any]:
    """The lines of a JSON Lines file, skipping lines cut short by an interruption; [] if there is no file."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


def append_json_line(path: Path, content: Any) -> None:
    """Append a line to a JSON Lines file; a last line cut short by an interruption is terminated first."""
    with path.open("ab+") as file:
        torn = False
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(content).encode() + b"\n")
