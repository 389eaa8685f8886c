"""Time-varying feedback gains: m × d matrices along an imagined trajectory, for use between two decisions.

Of π_ψ at the states s̃_ij of M particles, the mean of the M tangent planes

    a_j(s) = mean_i [ã_ij + Π_s(s̃_ij) (s − s̃_ij)] = ã_j + Π_s,j (s − s̃_j)

with s̃_j and Π_s,j the means over the particles and ã_j = mean_i [ã_ij + Π_s(s̃_ij) (s̃_j − s̃_ij)]. Every plane has an error of
½ π''(s − s̃_ij)², so the error of the mean is of second order in the distance from s to the particles, including their spread;
with one particle it is the tangent plane itself.

Evaluating π_ψ itself between decisions is exact and takes one forward pass, 134 656 multiply–adds for hopper's 3×256 actor;
prefer it wherever the network can be evaluated at the control rate. The gains take m·d multiply–adds, 33 for hopper, and no
network: they are for an inner loop at a rate or on a processor where the network cannot run, with the imagined step j matched
to the time since the decision. A ReLU policy is piecewise linear before its tanh: the error is that of the tanh alone up to the
nearest kink, and of first order beyond it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from jacrec.util.errors import expect_count


@dataclass(frozen=True)
class FeedbackGains:
    """Affine control laws for the steps j = 0…H; leading axis (N,), absent if the state came without N."""

    states: Tensor  # (N, H+1, d): s̃_j, means over the particles
    actions: Tensor  # (N, H+1, m): ã_j, the mean tangent plane at s̃_j
    gains: Tensor  # (N, H+1, m, d): Π_s,j

    @property
    def horizon(self) -> int:
        """H, the last step with gains."""
        return self.actions.shape[-2] - 1

    @torch.no_grad()
    def action(self, j: int, state: Tensor) -> Tensor:
        """ã_j + Π_s,j (s − s̃_j), clipped to [-1, 1]: (N, d) -> (N, m), or (d,) -> (m,).

        Raises:
            ValueError: a step beyond the horizon, or a state of another shape than the nominal one.
        """
        expect_count("j", j, 0)
        if j > self.horizon:
            raise ValueError(f"j: expected a step up to H = {self.horizon}, got {j}; decide again, or linearise further ahead")
        nominal = self.states[..., j, :]
        if state.shape != nominal.shape:
            raise ValueError(
                f"state: expected shape {tuple(nominal.shape)} as of the linearised states, got {tuple(state.shape)}"
            )
        change = (self.gains[..., j, :, :] @ (state - nominal).unsqueeze(-1)).squeeze(-1)
        return (self.actions[..., j, :] + change).clamp(-1, 1)


def mean_planes(states: Tensor, actions: Tensor, Pi_s: Tensor) -> FeedbackGains:
    """The gains from M particles: states (…, M, H+1, d), actions (…, M, H+1, m), Π_s (…, M, H+1, m, d)."""
    centre = states.mean(-3)
    away = (centre.unsqueeze(-3) - states).unsqueeze(-1)
    at_centre = actions + (Pi_s @ away).squeeze(-1)
    return FeedbackGains(centre, at_centre.mean(-3), Pi_s.mean(-4))
