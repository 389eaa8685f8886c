"""Copies of weights in the layout that the kernels read, updated before every use: weights may change in any way."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.rows import WORD, reader, row_of
from jacrec.kernels.cpu.base.tiles import at, integers, size_of


class Copy(NamedTuple):
    """A matrix and its copy: addresses, and strides in elements. The columns of a copy are contiguous."""

    source: int
    row_stride: int
    column_stride: int
    target: int
    target_stride: int
    rows: int
    columns: int


class CopyJob(NamedTuple):
    """Copies to be updated or compared."""

    count: int
    copies: int  # address of their rows
    watched: int  # the last so many are compared only
    changed: int  # whether one of these differs, written


COPY, CHANGED = len(Copy._fields), CopyJob._fields.index("changed")
_read_copy, _read_job = reader(Copy), reader(CopyJob)


@part
def update_copies(like, address):
    """Update the copies and compare the watched ones."""
    job, size = _read_job(address), size_of(like)
    changed = 0
    for i in range(job.count):
        copy = _read_copy(job.copies + i * COPY * WORD)
        step, columns = copy.column_stride, copy.columns
        for r in range(copy.rows):
            x, y = at(like, copy.source + r * copy.row_stride * size), at(like, copy.target + r * copy.target_stride * size)
            if i >= job.count - job.watched:
                different = 0
                if step == 1:
                    for c in range(columns):
                        # NaN differs from itself: what depends on it is then recomputed every time
                        different += x[c] != y[c]
                else:
                    for c in range(columns):
                        different += x[c * step] != y[c]
                if different:
                    changed = 1
            elif step == 1:
                for c in range(columns):
                    y[c] = x[c]
            else:
                for c in range(columns):
                    y[c] = x[c * step]
    integers(address)[CHANGED] = changed


class Keeper(Protocol):
    """Keeps alive what a job points to."""

    def array(self, array: np.ndarray) -> int:
        """The address of a contiguous numpy array."""
        ...


Pairs = Sequence[tuple[Tensor, Tensor]]


def copy_job(pairs: Pairs, watched: Pairs, keeper: Keeper) -> np.ndarray:
    """The job of (source, copy) pairs to be updated, and of others to be compared only."""
    table = [describe(*pair) for pair in [*pairs, *watched]]
    rows = np.concatenate([np.zeros((0, COPY), dtype=np.int64), *table])
    return row_of(CopyJob(len(rows), keeper.array(rows), sum(map(len, table[len(pairs) :])), 0))


def describe(source: Tensor, target: Tensor) -> np.ndarray:
    """Copies of the matrices of source (..., rows, columns) to target, whose columns are contiguous: rows of `Copy`."""
    rows, columns = source.shape[-2:]
    sources, targets = (x.unsqueeze(0) if x.dim() == 2 else x for x in (source, target))
    return np.array(
        [
            Copy(x.data_ptr(), *x.stride(), y.data_ptr(), y.stride(0), rows, columns)  # pyright: ignore
            for x, y in zip(sources, targets, strict=True)
        ],
        dtype=np.int64,
    )
