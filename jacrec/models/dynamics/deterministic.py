"""The deterministic one-step world model: the baseline that a diffusion model has to beat."""

from collections.abc import Sequence

import torch
from torch import Tensor

from jacrec.models.dynamics.base import ScaledDynamics
from jacrec.models.networks import MLP, written
from jacrec.util.errors import expect_one_of, widths


@written
class DeterministicDynamics(ScaledDynamics):
    """s' = s + mean + std ⊙ net(standardised s, a). Its noise is empty: `noise_shape` = (0, d)."""

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256, 256),
        *,
        target: str = "difference",
        activation: str = "silu",
        layer_norm: bool = False,
        residual: bool = False,
    ):
        expect_one_of("target", target, ("difference", "state"))
        super().__init__(state_dim, action_dim, target)
        state_dim, action_dim, hidden = self.state_dim, self.action_dim, widths("hidden", hidden)
        self.config = dict(
            state_dim=state_dim,
            action_dim=action_dim,
            hidden=list(hidden),
            target=target,
            activation=activation,
            layer_norm=layer_norm,
            residual=residual,
        )
        self.mlp = MLP(
            state_dim + action_dim, state_dim, hidden, activation=activation, layer_norm=layer_norm, residual=residual
        )
        self.mlp.initialise()

    @property
    def noise_shape(self) -> tuple[int, int]:
        """(0, d): no noise."""
        return (0, self.state_dim)

    def forward(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """state (..., d), action (..., m), noise (..., 0, d) -> next state (..., d)."""
        return self.decode(state, self.mlp(torch.cat([self.standardise(state), action], -1)))

    def loss(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """Mean squared error of the standardised target per row: (...)."""
        x = self.mlp(torch.cat([self.standardise(state), action], -1))
        return (x - self.encode(state, next_state)).square().mean(-1)
