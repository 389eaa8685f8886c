"""A gradient's job on several threads: each helper has a row and memory of its own, so that the caller can go on without it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from jacrec.kernels.cpu.base.helpers import GONE, LATE, NOT_BEGUN, Helper, answers_of, pool, release, together, work
from jacrec.kernels.cpu.base.shares import Division
from jacrec.kernels.cpu.base.team import STALLED
from jacrec.kernels.cpu.gradient.job import AT, CALL, Call, Lent, Sizes
from jacrec.kernels.cpu.gradient.sized import Job, SizedJob
from jacrec.kernels.cpu.gradient.tiling import LENT

PATIENCE = 300
"""thousandths of a share that a caller waits for those that helpers have begun"""
DELAY, HEAD_START = 0, 0
"""nanoseconds that a helper loses after it has taken a share, and that it has before its caller takes its first: for tests"""
SLOT = {name: CALL.start + i for i, name in enumerate(Call._fields)}
_TEAM = AT.sizes + Sizes._fields.index("team")
_DIVISION = slice(AT.division, AT.division + len(Division._fields))
_OWNERS, _HELPER, _DELAY = (AT.division + Division._fields.index(name) for name in ("owners", "helper", "delay"))


class Reads(NamedTuple):
    """What a helper may still read when its caller has gone on."""

    things: tuple
    """tensors of the call, and what the job points to"""
    weights: Callable[[], list[Tensor]]
    """the parameters and buffers that it reads where torch keeps them"""


def run_shares(task, job: Job, reads: Reads, then: Callable[[], object] | None = None, *, bounded: bool = True) -> None:
    """The compiled `rollout_gradient` or `rollout_sensitivities` of a job, then `then()`, which may use what helpers computed.

    bounded: whether the caller goes on without helpers that lose their cores. Otherwise it waits for those that have begun,
    which it must where they write to tensors that it returns: a helper that is left still writes after the call.
    """
    if job.sized.threads == 1:
        _run_alone(task, job, then, bounded)
    else:
        _run_together(task, job, reads, then, bounded)


def _run_alone(task, job: Job, then: Callable[[], object] | None, bounded: bool) -> None:
    _divide(job, 0, bounded)
    task.ctypes(job.address)
    if then:
        then()


def _run_together(task, job: Job, reads: Reads, then: Callable[[], object] | None, bounded: bool) -> None:
    lenders, row, sized, beside = pool(), None, job.sized, job.sized.beside
    free = lenders.take(sized.threads - 1)
    helpers: list[Helper] = []
    held: list[object] = [job, reads.things]
    try:
        team = bool(job.row[_TEAM] > 1)
        if team and len(free) < sized.threads - 1:
            job.row[_TEAM], team = 1, False  # the bits are the same
        else:
            helpers = free
        if not helpers:
            _run_alone(task, job, then, bounded)
            return
        _divide(job, len(helpers), bounded)
        jobs = []
        for number, helper in enumerate(helpers, 1):
            own = helper.copy_of(job.row[: beside.copies])
            own[_HELPER], own[_DELAY] = number, DELAY
            if team:
                own[_OWNERS] = job.address  # its threads meet in the caller's row
            elif bounded:
                lent = beside.lent + number * LENT
                job.row[lent : lent + LENT] = _lend(helper, own, sized)
            else:
                own[SLOT["memory"]] = helper.space(sized.room, sized.dtype)
            jobs.append(own.ctypes.data)
        # `then` reads what helpers have written, and one that was left may serve another caller by then
        held.append([helper.memory for helper in helpers])
        row = together(task, job.address, helpers, bounded=bounded)
        answers, lost = work(row, helpers, jobs, held)
        failed = lost or job.row[beside.revoked] > 0 or GONE in answers or LATE in answers
        if team:
            failed = failed or NOT_BEGUN in answers or job.row[AT.flags + STALLED] > 0
        lenders.record(bool(failed))
        if then:
            then()
    finally:
        if GONE in answers_of(row, helpers):
            # the owner may put other tensors in their place meanwhile
            tensors = [*reads.weights(), *(x for x in reads.things if isinstance(x, Tensor))]
            held.append([x.untyped_storage() for x in tensors])
        # those that were taken and not used have no answer
        release(row if helpers else None, free)


def _divide(job: Job, helpers: int, bounded: bool) -> None:
    """Divides a job among its caller and some helpers; all shares are free."""
    row, own = job.row, job.sized.beside
    row[own.owners : own.end] = 0
    row[SLOT["results"]], row[SLOT["lent"]] = job.at(own.results), job.at(own.lent)
    row[_DIVISION] = helpers, job.at(own.owners), job.at(own.revoked), 0, PATIENCE if bounded else -1, HEAD_START


def _lend(helper: Helper, row: np.ndarray, sized: SizedJob) -> Lent:
    """Points a helper's row to memory of its own; where the caller finds what it has written."""
    size, writes_path = sized.dtype.itemsize, bool(row[SLOT["path_s"]])
    states, actions = sized.path if writes_path else (0, 0)
    sums = sized.gradients * sized.length
    returns = helper.space(sized.first // size + sized.room + sums + states + actions, sized.dtype)
    memory = returns + sized.first
    gradients = memory + sized.room * size
    path_s = gradients + sums * size
    path_a = path_s + states * size
    row[SLOT["returns"]], row[SLOT["memory"]], row[SLOT["gradients"]] = returns, memory, gradients
    if writes_path:
        row[SLOT["path_s"]], row[SLOT["path_a"]] = path_s, path_a
    return Lent(gradients, returns, path_s, path_a)
