"""What a deadline needs: how long an update takes, the best ψ so far, and a Python that does not pause to tidy up."""

import gc
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from jacrec.engine.parameters import over_rows
from jacrec.models.world import BatchedPolicy

RECENT = 64
"""durations that are remembered"""
FEW = 8
"""so many durations tell an exception from the rule"""
PATIENCE = 8, 4096
"""decisions without an update after which one is tried all the same: at first, and at most"""


class Pace:
    """How long the next update and the end of a decision are expected to take, from those that went before, in seconds.

    Expected is the second longest of the last `RECENT`: a deadline has to hold in the slow cases, but a single pause, the
    machine's or the first call's, says nothing about the next update. Where not even one update is expected to fit, none is
    made for some decisions, and then one is tried: a busy machine does not stay busy for ever. A try that misses the deadline
    doubles the wait until the next, one that keeps it halves the wait.
    """

    def __init__(self):
        self.updates: deque[float] = deque(maxlen=RECENT)
        self.ends: deque[float] = deque(maxlen=RECENT)
        self.made = 0  # updates of this decision
        self.looked = 0.0  # seconds of this decision at the latest look
        self.deadline = 0.0
        self.refused, self.patience, self.trying = 0, PATIENCE[0], False

    def fits(self, elapsed: float, deadline: float) -> bool:
        """Whether to begin an update `elapsed` seconds after the observation came, with `deadline` seconds for the answer."""
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
        """An update has taken so long."""
        self.updates.append(seconds)
        self.made += 1
        self.looked += seconds

    def decided(self, elapsed: float) -> None:
        """The answer is there, `elapsed` seconds after the observation came."""
        self.ends.append(elapsed - self.looked)
        if self.trying:
            kept = elapsed <= self.deadline
            self.patience = max(PATIENCE[0], self.patience // 2) if kept else min(PATIENCE[1], 2 * self.patience)
        self.made, self.looked, self.trying = 0, 0.0, False


def expected(seconds: Collection[float]) -> float:
    """The second largest of some numbers; the largest of fewer than `FEW`; 0 where there are none."""
    if len(seconds) < FEW:
        return max(seconds, default=0.0)
    return sorted(seconds)[-2]


class Best:
    """The best ψ whose objective has been measured in a decision, row by row: an answer for when time is up.

    The memory is taken once and used for every decision.
    """

    def __init__(self, policy: nn.Module):
        self.policy, self.own = policy, dict(policy.named_parameters())
        self.kept = {name: p.detach().clone() for name, p in self.own.items()}
        self.batched = isinstance(policy, BatchedPolicy)
        self.value: Tensor | None = None
        self.latest: Tensor | None = None

    def begin(self) -> None:
        """Another decision: what was measured before is of another state."""
        self.own = dict(self.policy.named_parameters())
        self.value = self.latest = None

    @torch.no_grad()
    def keep(self, value: Tensor) -> None:
        """Ĵ () or (N,) has just been measured at the present ψ."""
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
        """Take back the rows whose latest measured objective fell below an earlier one.

        Where the latest is the best, the step made from it stands, as in Algorithm 1.
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
                p.copy_(source[name])
            else:
                torch.where(over_rows(rows, p), source[name], p, out=p)


@contextmanager
def realtime() -> Iterator[None]:
    """A control loop's surroundings: Python's garbage collector rests, and what exists is no longer looked through by it.

    A full collection looks at every object of every imported module, and may come in the middle of a decision. The decisions
    of `MPC.act` leave no cycles, so nothing piles up while it rests; a loop that makes some calls `gc.collect(0)` where it
    has time. Afterwards the collector is as it was.
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
        if not frozen:  # what somebody else froze stays frozen
            gc.unfreeze()
