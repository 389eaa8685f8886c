"""Deadlines: the expected duration of an update, the best ψ so far, and a pause of garbage collection."""

import gc
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

import torch
from torch import Tensor, nn

from jacrec.engine.parameters import copy_values, over_rows
from jacrec.models.world import BatchedPolicy

RECENT = 64
"""number of durations kept"""
FEW = 8
"""number of durations from which the longest is taken for an outlier"""
PATIENCE = 8, 4096
"""number of decisions without an update after which one is tried anyway: initially, and at most"""


class Deadline:
    """The deadline of a controller's decisions, one after the other: when to begin an update, and which ψ answers.

    Without a deadline every update is begun and the last ψ answers.
    """

    def __init__(self, policy: nn.Module):
        self.policy, self.pace = policy, Pace()
        self.best: Best | None = None
        self.seconds: float | None = None
        self.start = self.begun = 0.0

    def begin(self, deadline_ms: float | None) -> None:
        """A decision begins, with this much time; None: without a deadline."""
        self.start = perf_counter()
        self.seconds = None if deadline_ms is None else deadline_ms * 1e-3
        if self.seconds is not None:
            self.best = self.best or Best(self.policy)
            self.best.begin()
            self.pace.begin()

    def allows_update(self) -> bool:
        """Whether to begin another update."""
        if self.seconds is None:
            return True
        self.begun = perf_counter()
        return self.pace.fits(self.begun - self.start, self.seconds)

    def measured(self, value: Tensor) -> None:
        """Ĵ () or (N,) at the present ψ, from the update under way."""
        if self.seconds is not None and self.best is not None:
            self.best.keep(value)

    def updated(self, accepted: Tensor) -> None:
        """The update has been applied."""
        if self.seconds is not None:
            accepted.cpu()  # synchronise with the device: the clock has to see the whole update
            self.pace.updated(perf_counter() - self.begun)

    def restore_best(self) -> None:
        """Restore the best ψ measured, where the latest is worse."""
        if self.seconds is not None and self.best is not None:
            self.best.restore_where_worse()

    def end(self) -> None:
        """The decision has its answer."""
        if self.seconds is not None:
            self.pace.decided(perf_counter() - self.start)


class Pace:
    """Predicts how long the next update and the end of a decision take, in seconds, from earlier ones.

    The prediction is the second longest of the last `RECENT`: a deadline has to hold in the slow cases, but a single pause,
    such as that of the first call, says nothing about the next update. If not even one update is expected to fit, none is
    made for some decisions, then one is tried, since the load of a machine changes. A try that misses the deadline doubles
    the wait until the next; one that keeps it halves the wait.
    """

    def __init__(self):
        self.updates: deque[float] = deque(maxlen=RECENT)
        self.ends: deque[float] = deque(maxlen=RECENT)
        self.deadline = 0.0
        self.refused, self.patience = 0, PATIENCE[0]
        self.begin()

    def begin(self) -> None:
        """Begin a decision; an earlier one may have been interrupted."""
        self.made = 0  # updates of this decision
        self.looked = 0.0  # seconds into this decision at the latest reading
        self.trying = False

    def fits(self, elapsed: float, deadline: float) -> bool:
        """Whether to begin an update `elapsed` seconds after the observation, with `deadline` seconds for the decision."""
        self.looked, self.deadline = elapsed, deadline
        if elapsed + expected(self.updates) + expected(self.ends) <= deadline:
            return True
        if self.made:
            return False
        self.refused += 1
        if self.refused < self.patience:
            return False
        self.updates.clear()
        self.ends.clear()
        self.refused, self.trying = 0, True
        return True

    def updated(self, seconds: float) -> None:
        """Record the duration of an update."""
        self.updates.append(seconds)
        self.made += 1
        self.looked += seconds

    def decided(self, elapsed: float) -> None:
        """Record the end of a decision, `elapsed` seconds after the observation."""
        self.ends.append(elapsed - self.looked)
        if self.trying:
            kept = elapsed <= self.deadline
            self.patience = max(PATIENCE[0], self.patience // 2) if kept else min(PATIENCE[1], 2 * self.patience)
        self.begin()


def expected(seconds: Collection[float]) -> float:
    """The second largest number; the largest of fewer than `FEW`; 0 of none."""
    if len(seconds) < FEW:
        return max(seconds, default=0.0)
    return sorted(seconds)[-2]


class Best:
    """The ψ with the best objective measured during a decision, row by row, for when time is up.

    The memory is allocated once and reused by every decision.
    """

    def __init__(self, policy: nn.Module):
        self.policy, self.own = policy, dict(policy.named_parameters())
        self.kept = {name: p.detach().clone() for name, p in self.own.items()}
        self.batched = isinstance(policy, BatchedPolicy)
        self.value: Tensor | None = None
        self.latest: Tensor | None = None

    def begin(self) -> None:
        """Begin another decision; earlier measurements belong to another state."""
        self.own = dict(self.policy.named_parameters())
        self.value = self.latest = None

    @torch.no_grad()
    def keep(self, value: Tensor) -> None:
        """Ĵ () or (N,) measured at the present ψ."""
        row = value if self.batched else value.mean()
        if self.value is None:
            self.value = row.clone()
            self._copy(self.kept, self.own, None)
        else:
            better = row > self.value
            self.value = torch.where(better, row, self.value)
            self._copy(self.kept, self.own, better)
        self.latest = row

    @torch.no_grad()
    def restore_where_worse(self) -> None:
        """Restore the rows whose latest measured objective is below an earlier one.

        Where the latest is the best, the step made from it is kept, as in Algorithm 1.
        """
        if self.value is not None and self.latest is not None:
            self._copy(self.own, self.kept, ~(self.latest >= self.value))

    @staticmethod
    def _copy(to: Mapping[str, Tensor], source: Mapping[str, Tensor], rows: Tensor | None) -> None:
        """Copy the rows of a mask, () or (N,), or all of them."""
        if rows is not None and not bool(rows.any()):
            return
        everything = rows is None or bool(rows.all())
        for name, p in to.items():
            if everything or rows is None:
                copy_values(p, source[name])
            else:
                torch.where(over_rows(rows, p), source[name], p, out=p)


@contextmanager
def realtime() -> Iterator[None]:
    """Disable Python's garbage collector inside a control loop, and freeze the objects that exist.

    A full collection visits every object of every imported module, possibly in the middle of a decision. The decisions of
    `MPC.act` create no reference cycles, so nothing accumulates meanwhile; a loop that does create some can call
    `gc.collect(0)` when it has time. The collector's state is restored afterwards.
    """
    enabled, frozen = gc.isenabled(), gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
        if not frozen:  # objects frozen before stay frozen
            gc.unfreeze()
