"""Copies of weights in the layout that the kernels read, looked at before every use: weights may change by whatever hand."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.tiles import at, carray, integers, size_of

SOURCE, ROW_STEP, COLUMN_STEP, TARGET, TARGET_STEP, ROWS, COLUMNS = range(7)
"""addresses, and steps in elements; the columns of a target lie side by side"""
COPY = 7

# the job: how many copies, where they are described; the last `WATCHED` are compared only, and CHANGED says whether one differs
COUNT, COPIES, WATCHED, CHANGED = range(4)
JOB = 4


@part
def copy_again(like, job_address):
    """Every copy brought up to date, and the watched ones compared."""
    job, size = integers(job_address), size_of(like)
    table = carray(integers(job[COPIES]), (job[COUNT], COPY))
    job[CHANGED] = 0
    for i in range(job[COUNT]):
        source, row_step, step = table[i, SOURCE], table[i, ROW_STEP], table[i, COLUMN_STEP]
        target, target_step, columns = table[i, TARGET], table[i, TARGET_STEP], table[i, COLUMNS]
        for r in range(table[i, ROWS]):
            x, y = at(like, source + r * row_step * size), at(like, target + r * target_step * size)
            if i >= job[COUNT] - job[WATCHED]:
                different = 0
                if step == 1:
                    for c in range(columns):
                        # not a number differs from itself: what depends on it is then worked out every time
                        different += x[c] != y[c]
                else:
                    for c in range(columns):
                        different += x[c * step] != y[c]
                if different:
                    job[CHANGED] = 1
            elif step == 1:
                for c in range(columns):
                    y[c] = x[c]
            else:
                for c in range(columns):
                    y[c] = x[c * step]


class Keeper(Protocol):
    """Keeps alive what a job points to."""

    def array(self, array: np.ndarray) -> int:
        """Where a contiguous numpy array lies."""
        ...


Pairs = Sequence[tuple[Tensor, Tensor]]


def job(pairs: Pairs, watched: Pairs, keeper: Keeper) -> np.ndarray:
    """The job of (source, copy) pairs, and of further ones that are to be compared only."""
    table = [describe(*pair) for pair in [*pairs, *watched]]
    rows = np.concatenate([np.zeros((0, COPY), dtype=np.int64), *table])
    row = np.zeros(JOB, dtype=np.int64)
    row[COUNT], row[COPIES] = len(rows), keeper.array(rows)
    row[WATCHED] = sum(map(len, table[len(pairs) :]))
    return row


def describe(source: Tensor, target: Tensor) -> np.ndarray:
    """Copies of the matrices of source (..., rows, columns) into target, whose columns lie side by side: (n, COPY)."""
    rows, columns = source.shape[-2:]
    sources, targets = (x.unsqueeze(0) if x.dim() == 2 else x for x in (source, target))
    return np.array(
        [(x.data_ptr(), *x.stride(), y.data_ptr(), y.stride(0), rows, columns) for x, y in zip(sources, targets, strict=True)],
        dtype=np.int64,
    )
