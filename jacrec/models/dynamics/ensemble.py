"""A small probabilistic ensemble, the world model of PETS (Chua et al. 2018) and MBPO (Janner et al. 2019)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from jacrec.models.dynamics.base import ScaledDynamics
from jacrec.models.networks import MLP, written
from jacrec.util.errors import counted, expect_one_of, widths

LOWEST, HIGHEST = -12.0, 1.0
"""soft bounds of the logarithm of the variance, of the standardised target"""


@written
class EnsembleDynamics(ScaledDynamics):
    """s' = s + mean + std ⊙ (μ_i + σ_i ⊙ z): n networks that each predict a Gaussian, one of them drawn per transition.

    `noise_shape` is (2, d): row 0 is z, and the first entry of row 1 picks the network, i = ⌊n Φ(·)⌋ with Φ the normal
    distribution function. At fixed noise s' is a differentiable function of s and a. The logarithm of the variance is
    bounded softly to `LOWEST` … `HIGHEST`.

    Args:
        members: n.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256, 256),
        *,
        members: int = 5,
        target: str = "difference",
        activation: str = "silu",
        layer_norm: bool = False,
        residual: bool = False,
    ):
        expect_one_of("target", target, ("difference", "state"))
        members = counted("members", members)
        super().__init__(state_dim, action_dim, target)
        state_dim, action_dim, hidden = self.state_dim, self.action_dim, widths("hidden", hidden)
        self.config = dict(
            state_dim=state_dim,
            action_dim=action_dim,
            hidden=list(hidden),
            members=members,
            target=target,
            activation=activation,
            layer_norm=layer_norm,
            residual=residual,
        )
        self.members = members
        self.mlp = MLP(
            state_dim + action_dim,
            2 * state_dim,
            hidden,
            activation=activation,
            layer_norm=layer_norm,
            residual=residual,
            stack=members,
        )
        self.mlp.initialise()

    @property
    def noise_shape(self) -> tuple[int, int]:
        """(2, d)."""
        return (2, self.state_dim)

    def member(self, noise: Tensor) -> Tensor:
        """Which network each noise (..., 2, d) picks: (...) int64."""
        share = torch.special.ndtr(noise[..., 1, 0])
        return (share * self.members).long().clamp(max=self.members - 1)

    def predict(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Every network's mean and logarithm of the variance of the standardised target: (n, ..., d) each."""
        x = torch.cat([self.standardise(state), action], -1)
        mean, raw = self.mlp(x.expand(self.members, *x.shape)).chunk(2, -1)
        return mean, bounded(raw)[0]

    def forward(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """state (..., d), action (..., m), noise (..., 2, d) -> next state (..., d)."""
        mean, log_variance = self.predict(state, action)
        member = self.member(noise)[None, ..., None]
        mean, log_variance = (torch.take_along_dim(x, member, 0).squeeze(0) for x in (mean, log_variance))
        return self.decode(state, mean + torch.exp(log_variance / 2) * noise[..., 0, :])

    def loss(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """Every network's negative log-likelihood, without its constant, per row, mean over dimensions: (n, ...)."""
        mean, log_variance = self.predict(state, action)
        error = mean - self.encode(state, next_state)
        return 0.5 * (error.square() * torch.exp(-log_variance) + log_variance).mean(-1)


def bounded(raw: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithm of the variance from a network's output, and its derivative, both shaped as `raw`."""
    # softplus(x) = −log σ(−x): torch's own softplus is the identity from x = 20 on, its derivative is not
    below = HIGHEST + functional.logsigmoid(raw - HIGHEST)
    value = LOWEST - functional.logsigmoid(LOWEST - below)
    return value, torch.sigmoid(HIGHEST - raw) * torch.sigmoid(below - LOWEST)
