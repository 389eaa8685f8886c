"""Columns of Parquet files as arrays of numbers: one file, or a folder of them such as a LeRobot data set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from jacrec.data.readers.checks import expect_numbers

SUFFIX = ".parquet"


@contextmanager
def open_parquet(path: Path) -> Iterator[tuple[Callable[[str], np.ndarray | None], dict[str, str]]]:
    """A function from a column's name to its array, None if there is no such column; and no attributes.

    Args:
        path: a file, or a folder, whose files are read in the order of their names; those in its folder `data` if it has one.

    Raises:
        FileNotFoundError: a folder without such files.
        ValueError: pyarrow is not installed, or a file is damaged.
    """
    try:
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError as error:
        raise ValueError(
            f"{path}: expected the package pyarrow to read it, got an error ({error}); pip install 'jacrec[parquet]'"
        ) from None
    folder = path / "data" if (path / "data").is_dir() else path
    files = [path] if path.is_file() else sorted(folder.rglob(f"*{SUFFIX}"))
    if not files:
        raise FileNotFoundError(f"{folder}: expected files *{SUFFIX}, got none; name the file or the data set's folder")

    def read(call: Callable[..., Any], file: Path, **options: Any) -> Any:
        try:
            return call(file, **options)
        except Exception as error:  # pyarrow raises several kinds for a damaged file
            raise ValueError(f"{file}: expected a Parquet file, cannot read it ({error}); copy or download it again") from error

    def find(name: str) -> np.ndarray | None:
        if name not in read(parquet.read_schema, files[0]).names:
            return None
        tables = [read(parquet.read_table, file, columns=[name]) for file in files]
        return np.concatenate([_numbers(chunk, f"{path}: {name}") for table in tables for chunk in table.column(0).chunks])

    yield find, {}


def _numbers(chunk: Any, where: str) -> np.ndarray:
    """A chunk of a column of numbers (n,), or of lists of numbers of one length (n, width)."""
    rows, width = len(chunk), None
    if chunk.null_count:
        raise ValueError(f"{where}: expected a value in every row, got {chunk.null_count} rows without; drop or fill them")
    if hasattr(chunk, "flatten") and hasattr(chunk.type, "value_type"):
        flat = chunk.flatten()
        width = len(flat) // max(rows, 1)
        lengths = {len(row) for row in chunk}
        if len(lengths) > 1:
            raise ValueError(f"{where}: expected lists of one length, got lengths from {min(lengths)} to {max(lengths)}")
        if flat.null_count:
            raise ValueError(f"{where}: expected a number in every place, got {flat.null_count} without; drop or fill them")
        chunk = flat
    values = chunk.to_numpy(zero_copy_only=False)
    expect_numbers(values, *where.rsplit(": ", 1))
    return values if width is None else values.reshape(rows, width)
