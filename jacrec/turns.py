"""Which environments think at a call of `act`, and how far each may look: counters, row by row."""

import torch
from torch import Tensor


class Turns:
    """The n rows' decisions since their episodes began.

    A row thinks at its first decision and at every `think_every`-th after it; its Jacobian growth is measured at its first
    thought and at every `growth_every`-th after it.
    """

    def __init__(self, n: int, think_every: int, growth_every: int, horizon: int):
        self.think_every, self.growth_every = think_every, growth_every
        self.decisions = torch.zeros(n, dtype=torch.long)
        self.horizon = torch.full((n,), horizon)
        """the horizon last found for each row"""

    def due(self) -> Tensor:
        """Which rows think now, (n,)."""
        return self.decisions % self.think_every == 0

    def stale(self) -> Tensor:
        """Which of them have their growth measured first, (n,)."""
        return self.decisions % (self.think_every * self.growth_every) == 0

    def tick(self) -> None:
        """A decision has been made in all rows."""
        self.decisions += 1

    def begin(self, rows: Tensor | None) -> None:
        """An episode begins, in all rows or where the mask says so."""
        self.decisions[slice(None) if rows is None else rows.cpu()] = 0

    def state_dict(self) -> dict[str, Tensor]:
        """The counters."""
        return {"turns.decisions": self.decisions.clone(), "turns.horizon": self.horizon.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from there."""
        self.decisions.copy_(state["turns.decisions"])
        self.horizon.copy_(state["turns.horizon"])
