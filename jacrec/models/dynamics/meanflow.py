"""The MeanFlow world model: the average velocity of a flow, so that one network evaluation is one transition."""

from collections.abc import Sequence

import torch
from torch import Tensor

from jacrec.models.dynamics.chain import ChainDynamics
from jacrec.models.dynamics.flow import TIME_SCALE
from jacrec.models.networks import Denoiser, written
from jacrec.util.errors import counted, expect_one_of, widths


@written
class MeanFlowDynamics(ChainDynamics):
    """s' = f_θ(s, a, e): x = e − u_θ(e, 0, 1; s, a), the standardised transition, in one step (K = 1).

    MeanFlow (Geng et al. 2025): u(z, r, t) is the mean over [r, t] of the velocity v of the path z_t = (1 − t) x + t e, so
    z_r = z_t − (t − r) u(z_t, r, t) exactly. It is learned from the identity

        u = v − (t − r) du/dt,    du/dt = ∂_z u v + ∂_t u,

    whose right side, the target, is a forward-mode derivative of the network itself. `noise_shape` is (1, d): e. The network
    is told t and t − r. The policy-tilted model of the paper's later version is this one trained with weights
    (`jacrec.training.DynamicsConfig.tilt`).

    Args:
        prediction: what the network predicts, the average "velocity", or the clean sample "x0", of which u = (z − x̂)/t.
        steps: n, equal intervals that sampling takes; 1 is what the model is for, more are more exact where it is not.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256, 256),
        *,
        steps: int = 1,
        prediction: str = "x0",
        target: str = "difference",
        activation: str = "silu",
        layer_norm: bool = False,
        residual: bool = False,
        embedding_dim: int = 32,
    ):
        expect_one_of("target", target, ("difference", "state"))
        expect_one_of("prediction", prediction, ("velocity", "x0"))
        steps = counted("steps", steps)
        super().__init__(state_dim, action_dim, target)
        state_dim, action_dim, hidden = self.state_dim, self.action_dim, widths("hidden", hidden)
        self.config = dict(
            state_dim=state_dim,
            action_dim=action_dim,
            hidden=list(hidden),
            steps=steps,
            prediction=prediction,
            target=target,
            activation=activation,
            layer_norm=layer_norm,
            residual=residual,
            embedding_dim=embedding_dim,
        )
        self.prediction = prediction
        self.denoiser = Denoiser(
            state_dim,
            action_dim,
            hidden,
            activation=activation,
            layer_norm=layer_norm,
            residual=residual,
            embedding_dim=embedding_dim,
            times=2,
        )
        times = [(TIME_SCALE * k / steps, TIME_SCALE / steps) for k in range(1, steps + 1)]
        if prediction == "velocity":
            self.set_chain(times, [1.0] * steps, [-1.0 / steps] * steps)
        else:  # z − (1/n) (z − x̂) / (k/n)
            self.set_chain(times, [(k - 1) / k for k in range(1, steps + 1)], [1 / k for k in range(1, steps + 1)])

    def average_velocity(self, z: Tensor, r: Tensor, t: Tensor, state: Tensor, action: Tensor) -> Tensor:
        """u_θ(z, r, t; s, a): z (..., d), r and t (...), state in the data's units (..., d), action (..., m) -> (..., d)."""
        net = self.denoiser(z, TIME_SCALE * torch.stack([t, t - r], -1), self.standardise(state), action)
        return net if self.prediction == "velocity" else (z - net) / t.unsqueeze(-1)

    def goal(self, state: Tensor, action: Tensor, x: Tensor, r: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """u and the right side of the identity, v − (t − r) du/dt, both (..., d), by `torch.func.jvp` along (v, 0, 1).

        x (..., d) is the standardised transition (`encode`), noise (..., d) the e of the path.
        """
        v = noise - x
        z = torch.lerp(x, noise, t.unsqueeze(-1))
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        u, dudt = torch.func.jvp(lambda z, r, t: self.average_velocity(z, r, t, state, action), (z, r, t), (v, zero, one))[:2]
        return u, v - (t - r).unsqueeze(-1) * dudt

    def loss(self, state: Tensor, action: Tensor, next_state: Tensor, r: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Squared distance of u from its goal, whose gradient is stopped, per row, mean over dimensions: (...).

        Where the network predicts x0 the distance is that of x̂ = z − t u from its own goal. r <= t (...), noise (..., d).
        Training divides each row by its own size (`jacrec.training`).
        """
        u, goal = self.goal(state, action, self.encode(state, next_state), r, t, noise)
        distance = u - goal.detach()
        if self.prediction == "x0":
            distance = t.unsqueeze(-1) * distance
        return distance.square().mean(-1)
