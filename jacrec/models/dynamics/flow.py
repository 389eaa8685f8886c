"""The flow-matching world model: an ordinary differential equation from noise to the next state, in a few steps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from jacrec.models.dynamics.chain import ChainDynamics
from jacrec.models.networks import Denoiser, written
from jacrec.util.errors import expect_count, expect_one_of

TIME_SCALE = 1.0
"""the network is told TIME_SCALE · t, t in [0, 1]: features that vary slowly. At 10, where they tell times apart as they do
diffusion levels, MeanFlow's one-step error was 1.3 times as large: what r = t teaches has to reach r < t"""


@written
class FlowDynamics(ChainDynamics):
    """s' = f_θ(s, a, e): the solution at t = 0 of du/dt = v_θ(u, t; s, a) from u = e at t = 1.

    Flow matching (Lipman et al. 2023; Liu et al. 2023): between a transition x and noise e the path is
    x_t = (1 − t) x + t e, whose velocity is e − x; v_θ regresses on it. Any number of steps may sample a trained model.
    `noise_shape` is (1, d): the base sample e.

    Args:
        steps: n, intervals of equal length from t = 1 to 0.
        solver: "euler", one network evaluation per interval (K = n), or "heun", of second order: two, and one in the
            last interval where the network predicts x0, whose velocity is not known at t = 0 (K = 2n or 2n − 1).
        prediction: what the network predicts, the "velocity" or the clean sample "x0", of which v = (u − x̂)/t.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256, 256),
        *,
        steps: int = 4,
        solver: str = "euler",
        prediction: str = "velocity",
        target: str = "difference",
        activation: str = "relu",
        layer_norm: bool = False,
        residual: bool = False,
        embedding_dim: int = 32,
    ):
        expect_one_of("target", target, ("difference", "state"))
        expect_one_of("solver", solver, ("euler", "heun"))
        expect_one_of("prediction", prediction, ("velocity", "x0"))
        expect_count("steps", steps, 1)
        super().__init__(state_dim, action_dim, target)
        self.config = dict(
            state_dim=state_dim,
            action_dim=action_dim,
            hidden=list(hidden),
            steps=steps,
            solver=solver,
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
        self._tabulate(steps, solver)

    def _tabulate(self, n: int, solver: str) -> None:
        """The tables of `ChainDynamics`, step by step from t = 1 down."""
        calls = []  # t, c_u, c_net, c_p, keep_u, keep_net
        for i in range(n, 0, -1):
            t, following, dt = i / n, (i - 1) / n, 1 / n
            a, b = self._velocity(t)
            if solver == "euler" or (following == 0 and self.prediction == "x0"):
                calls.append((t, 1 - dt * a, -dt * b, 0.0, 0.0, 0.0))
            else:
                # û = u − dt v(u, t), with p = u − dt/2 v(u, t) kept; then p − dt/2 v(û, t − dt)
                calls.append((t, 1 - dt * a, -dt * b, 0.0, 1 - dt / 2 * a, -dt / 2 * b))
                a, b = self._velocity(following)
                calls.append((following, -dt / 2 * a, -dt / 2 * b, 1.0, 0.0, 0.0))
        t, c_u, c_net, c_p, keep_u, keep_net = zip(*calls[::-1], strict=True)
        second = any(c_p)
        self.set_chain(
            [TIME_SCALE * x for x in t],
            c_u,
            c_net,
            c_p=c_p if second else None,
            keep=list(zip(keep_u, keep_net, strict=True)) if second else None,
        )

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
