"""The base of jacrec's own dynamics: the scales of the data."""

import torch
from torch import Tensor, nn

from jacrec.util.errors import counted


class ScaledDynamics(nn.Module):
    """Dynamics f(s, a, ε) = offset(s) + out_mean + out_std ⊙ x with x a network's output on standardised states.

    With target = "difference" offset(s) = s and (out_mean, out_std) standardise s' − s; with "state" offset is 0 and
    they standardise s' itself. The buffers are the identity until `set_scales`.
    """

    state_mean: Tensor
    state_std: Tensor
    out_mean: Tensor
    out_std: Tensor

    def __init__(self, state_dim: int, action_dim: int, target: str):
        super().__init__()
        state_dim, action_dim = counted("state_dim", state_dim), counted("action_dim", action_dim)
        self.state_dim, self.action_dim, self.target = state_dim, action_dim, target
        for name in ("state_mean", "out_mean"):
            self.register_buffer(name, torch.zeros(state_dim))
        for name in ("state_std", "out_std"):
            self.register_buffer(name, torch.ones(state_dim))

    @torch.no_grad()
    def set_scales(self, state_mean, state_std, out_mean, out_std) -> None:
        """Set the data's means and standard deviations, each (d,)."""
        scales = {"state_mean": state_mean, "state_std": state_std, "out_mean": out_mean, "out_std": out_std}
        for name, value in scales.items():
            value = torch.as_tensor(value)
            positive = not name.endswith("std") or bool((value > 0).all())
            if value.shape != (self.state_dim,) or not torch.isfinite(value).all() or not positive:
                raise ValueError(f"{name}: expected {self.state_dim} finite values (positive for std), got {value}")
            getattr(self, name).copy_(value)

    def standardise(self, state: Tensor) -> Tensor:
        """(s − mean) / std, (..., d)."""
        return (state - self.state_mean) / self.state_std

    def encode(self, state: Tensor, next_state: Tensor) -> Tensor:
        """The network's target x for a transition, (..., d); the inverse of `decode`."""
        moved = next_state - state if self.target == "difference" else next_state
        return (moved - self.out_mean) / self.out_std

    def decode(self, state: Tensor, x: Tensor) -> Tensor:
        """The next state for the network's output x, (..., d)."""
        moved = self.out_mean + self.out_std * x
        return state + moved if self.target == "difference" else moved
