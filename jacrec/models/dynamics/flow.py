"""The flow-matching world model: an ordinary differential equation from noise to the next state, in a few steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jacrec.models.dynamics.chain import ChainDynamics
from jacrec.models.networks import Denoiser, written
from jacrec.util.errors import counted, expect_one_of, widths

TIME_SCALE = 1.0
"""the network's time input is TIME_SCALE · t, t in [0, 1], so that features vary slowly. At 10, where they separate times as well
as diffusion levels, MeanFlow's one-step error was 1.3 times as large: what is learned at r = t has to generalise to r < t"""


@written
class FlowDynamics(ChainDynamics):
    """s' = f_θ(s, a, e): the solution at t = 0 of du/dt = v_θ(u, t; s, a) from u = e at t = 1.

    Flow matching (Lipman et al. 2023; Liu et al. 2023): between a transition x and noise e the path is
    x_t = (1 − t) x + t e, whose velocity is e − x; v_θ regresses on it. A trained model may be sampled with any number of steps.
    `noise_shape` is (1, d): the base sample e.

    Args:
        steps: K Euler steps of equal length from t = 1 to 0, one network evaluation each.
        prediction: what the network predicts, the "velocity" or the clean sample "x0", of which v = (u − x̂)/t.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256, 256),
        *,
        steps: int = 4,
        prediction: str = "velocity",
        target: str = "difference",
        activation: str = "relu",
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
        )
        self._tabulate(steps)

    def _tabulate(self, n: int) -> None:
        """The tables of `ChainDynamics`: u ← u − Δ v_θ(u, t_k) at t_k = k/n, Δ = 1/n."""
        dt, t = 1 / n, [k / n for k in range(1, n + 1)]
        velocities = [self._velocity(x) for x in t]
        self.set_chain([TIME_SCALE * x for x in t], [1 - dt * a for a, _ in velocities], [-dt * b for _, b in velocities])

    def _velocity(self, t: float) -> tuple[float, float]:
        """v = a u + b net at time t."""
        return (0.0, 1.0) if self.prediction == "velocity" else (1 / t, -1 / t)

    def loss(self, state: Tensor, action: Tensor, next_state: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Squared error of the velocity, or of x0, per row, mean over dimensions: (...). t (...) in [0, 1], noise (..., d)."""
        x = self.encode(state, next_state)
        u = torch.lerp(x, noise, t.unsqueeze(-1))
        prediction = self.denoiser(u, TIME_SCALE * t, self.standardise(state), action)
        goal = noise - x if self.prediction == "velocity" else x
        return (prediction - goal).square().mean(-1)


def without_solver(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings of a flow model without `solver`, which files of earlier versions contain.

    Raises:
        ValueError: a solver other than "euler", the only one left.
    """
    solver = content.get("solver")
    if solver not in (None, "euler"):
        raise ValueError(
            f'{where}: expected solver "euler", since flow models are sampled by Euler steps only, got {solver!r}; sample the model '
            "with more steps, or train it again"
        )
    return {name: value for name, value in content.items() if name != "solver"}
