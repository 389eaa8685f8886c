"""A gradient's job on several threads: each helper has a row and memory of its own, so that the caller can go on without it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jacrec.kernels.cpu.base.helpers import DONE, GONE, Helper, pool, work
from jacrec.kernels.cpu.base.shares import SPACING, Division
from jacrec.kernels.cpu.base.team import STALLED
from jacrec.kernels.cpu.gradient.job import AT, CALL, Call, Lent, Sizes
from jacrec.kernels.cpu.gradient.sized import SizedJob

PATIENCE = 300
"""thousandths of a share that a caller waits for those that helpers have begun"""
DELAY = 0
"""nanoseconds that a helper loses after it has taken a share: for tests"""
SLOT = {name: CALL.start + i for i, name in enumerate(Call._fields)}
_TEAM = AT.sizes + Sizes._fields.index("team")
_ROWS = AT.sizes + Sizes._fields.index("rows")
_DIVISION = slice(AT.division, AT.division + len(Division._fields))


class Reads(NamedTuple):
    """What a helper may still read when its caller has gone on."""

    things: tuple
    """tensors of the call, and what the job points to"""
    weights: Callable[[], list[Tensor]]
    """the parameters and buffers that it reads where torch keeps them"""


def run_shares(task, job: np.ndarray, sized: SizedJob, vectors: Tensor, reads: Reads, then: Callable[[], object]) -> np.ndarray:
    """The compiled `rollout_gradient` of a job, then `then()`, which may use what helpers have computed.

    vectors: the caller's gradients. Returns what the job points to from now on.
    """
    helpers = pool().take(sized.threads - 1)
    team = int(job[_TEAM]) > 1
    if team and len(helpers) < sized.threads - 1:
        job[_TEAM], team = 1, False  # the bits are the same
        for helper in helpers:
            helper.release()
        helpers = []
    # owner words, the number revoked, where each share's gradients are, and what helpers have written
    shares, spaced = sized.shares, sized.shares * SPACING
    book = np.zeros(spaced + SPACING + shares + (len(helpers) + 1) * len(Lent._fields), dtype=np.int64)
    results = book[spaced + SPACING :]
    lent = results[shares:]
    first, size = book.ctypes.data, book.itemsize
    division = Division(len(helpers), first, first + spaced * size, 0, PATIENCE, DELAY)
    job[_DIVISION] = division
    job[SLOT["results"]], job[SLOT["lent"]] = results.ctypes.data, lent.ctypes.data
    held = [book, job, sized, reads.things]
    answers: list[int] = []
    posts = []
    try:
        for number, helper in enumerate(helpers, 1):
            if team:  # its threads meet in the caller's row
                row = helper.copy_of(job)
                row[_DIVISION] = Division(len(helpers), job.ctypes.data, 0, number)
            else:
                row, own = _row(helper, number, job, sized, vectors)
                row[_DIVISION] = division._replace(helper=number)
                lent[number * len(own) : (number + 1) * len(own)] = own
            posts.append((helper, row.ctypes.data))
        answers = work(task, job, posts, bounded=True, held=held)
        if helpers:
            stalled = team and job[AT.flags + STALLED]
            pool().patience.record(bool(stalled or book[spaced] or GONE in answers or (team and answers != [DONE] * len(answers))))
        then()
    finally:
        if GONE in answers:
            # the owner may put other tensors in their place meanwhile
            held.append([x.untyped_storage() for x in reads.weights()])
        for helper, answer in zip(helpers, answers or [DONE] * len(helpers), strict=True):
            if answer != GONE:
                helper.release()
    return book


def _row(helper: Helper, number: int, job: np.ndarray, sized: SizedJob, vectors: Tensor) -> tuple[np.ndarray, Lent]:
    """A helper's copy of the job's row, which points to memory of its own; and what the caller will find there."""
    row, size = helper.copy_of(job), vectors.element_size()
    writes_path = bool(job[SLOT["path_s"]])
    states, actions = sized.path if writes_path else (0, 0)
    counts = sized.first // size + sized.room + vectors.numel() + states + actions
    returns = helper.space(counts, vectors.dtype)
    memory = returns + sized.first
    gradients = memory + sized.room * size
    path_s = gradients + vectors.numel() * size
    path_a = path_s + states * size
    row[SLOT["returns"]], row[SLOT["memory"]], row[SLOT["gradients"]] = returns, memory, gradients
    if writes_path:
        row[SLOT["path_s"]], row[SLOT["path_a"]] = path_s, path_a
    return row, Lent(gradients, returns, path_s, path_a)
