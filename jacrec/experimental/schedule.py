"""Which environments think at a call of `act` and how far each may look, row by row; and one answer from several groups."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jacrec.control.mpc import MPCStep, Trace, Trust


class Turns:
    """Counts the n rows' decisions since their episodes began.

    A row thinks at its first decision and at every `think_every`-th after it; its Jacobian growth is measured at its first
    thought and at every `growth_every`-th after it.
    """

    def __init__(self, n: int, horizon: int):
        self.decisions = torch.zeros(n, dtype=torch.long)
        self.horizon = torch.full((n,), horizon)
        """the horizon last found for each row"""

    def due(self, think_every: int) -> Tensor:
        """A mask (n,) of the rows that think now."""
        return self.decisions % think_every == 0

    def stale(self, think_every: int, growth_every: int) -> Tensor:
        """The indices of those whose growth is measured first."""
        return (self.decisions % (think_every * growth_every) == 0).nonzero().squeeze(-1)

    def groups(self, due: Tensor) -> Iterator[tuple[Tensor, int]]:
        """The rows that think, as indices, by their horizon."""
        for horizon in self.horizon[due].unique().tolist():
            yield (due & (self.horizon == horizon)).nonzero().squeeze(-1), horizon

    def tick(self) -> None:
        """A decision has been made in all rows."""
        self.decisions += 1

    def begin(self, rows: Tensor | None) -> None:
        """An episode begins, in all rows or where the mask (n,) says so."""
        self.decisions[slice(None) if rows is None else rows.cpu()] = 0

    def state_dict(self) -> dict[str, Tensor]:
        """The counters and horizons."""
        return {"turns.decisions": self.decisions.clone(), "turns.horizon": self.horizon.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from there."""
        self.decisions.copy_(state["turns.decisions"])
        self.horizon.copy_(state["turns.horizon"])


class Group(NamedTuple):
    """Rows that thought together, and what came of it."""

    rows: Tensor
    trace: Trace


def gathered(action: Tensor, turns: Turns, groups: Sequence[Group], *, single: bool) -> MPCStep:
    """The groups' updates as one decision of all n rows; see `Trust` for what stands where a row made none.

    Args:
        action: (n, m), of all rows.
        single: there is one row, and the caller knows no axis of rows.
    """
    n, E = len(action), max((len(group.trace.taken) for group in groups), default=0)
    objective, norm, snr = (action.new_full((E, n), torch.nan) for _ in range(3))
    accepted, held = (action.new_zeros(E, n, dtype=torch.bool) for _ in range(2))
    particles = action.new_zeros(E, n, dtype=torch.long)
    thought = action.new_zeros(n, dtype=torch.bool)
    for rows, trace in groups:
        thought[rows] = True
        for e, (value, taken) in enumerate(zip(trace.objective, trace.taken, strict=True)):
            objective[e, rows], norm[e, rows], accepted[e, rows] = value, taken.gradient_norm, taken.accepted
            snr[e, rows], particles[e, rows], held[e, rows] = taken.snr, taken.particles, taken.held
    horizon = turns.horizon.to(action.device)
    if not single:
        return MPCStep(action, objective, norm, accepted, Trust(thought, horizon, particles, snr, held))
    trust = Trust(thought.squeeze(0), horizon.squeeze(0), *(x.squeeze(1) for x in (particles, snr, held)))
    return MPCStep(action.squeeze(0), objective.squeeze(1), norm.squeeze(1), accepted.squeeze(1), trust)
