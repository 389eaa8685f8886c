"""A world model of H steps at once: all future states from one state and a sequence of actions, none from another prediction.

    (s_1, …, s_H) = g(s_0, a_0 … a_{H-1}, ε):    s_j = s_0 + mean_j + std_j ⊙ x_j ,

where the standardised displacement x_j is a network's answer to (s_0, the first j actions, j): the same network for every j,
one row each, with the actions behind a_{j-1} masked by zeros. s_j so depends on a_i for i < j alone. In the first layer the
prefix is a running sum,

    z_j = W_s s̄_0 + Σ_{i<j} W_a[i] a_i + (W_j + b) ,

so all prefixes cost as much as the longest, and ∂s_j/∂a_i for all i < j is one pull through row j and W_a[i]ᵀ.

Noise. With `stochastic`, x_j = μ_j + σ_j ⊙ n_j with a learned σ_j(s_0, a_0 … a_{j-1}) and n_j = (ε_1 + … + ε_j)/√j: standard
normal at every j, correlated between i < j by √(i/j) like the displacements of a random walk. That represents how uncertain
each s_j is; not several modes, no correlation between dimensions beyond what the mean explains, and no reaction of later
states to earlier noise other than through the actions.

In the loop. With a_j = π(s_j) the trajectory is the fixed point of s = g(s_0, π(s), ε). Since g is causal, sweep q of

    s^(q) = g(s_0, π(s^(q-1)), ε),    s^(0)_j = s_0

has s_1 … s_q right, and H sweeps the whole. `sweeps` = p < H stops there: then s_j for j > p answers to actions of the sweep
before, as an imagination in p batched passes; what is returned, and differentiated (`jacrec.engine.multistep`), is that very
trajectory.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from jacrec.models.networks import MLP, written
from jacrec.util.errors import counted, widths

LOG_SCALE = (-1.5, 2.5)
"""log σ = centre + half-width · tanh(network): σ from 0.018 to 2.7 standard deviations of the displacement"""


@written
class MultiStepDynamics(nn.Module):
    """g of the module. As a callable it is its own first step, s' = g(s, a)_1, so that it can be tested as any one-step model.

    Args:
        horizon: the most steps that it predicts; shorter imaginations use its first rows.
        stochastic: whether it learns how uncertain it is; `noise_shape` is (1, d) then, else (0, d).
        sweeps: p, how many passes an imagination in the loop takes; None: as many as make it exact.
    """

    state_mean: Tensor
    state_std: Tensor
    out_mean: Tensor
    out_std: Tensor

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256, 256),
        *,
        horizon: int = 5,
        stochastic: bool = False,
        sweeps: int | None = None,
        activation: str = "silu",
        layer_norm: bool = False,
        residual: bool = False,
    ):
        super().__init__()
        state_dim, action_dim = counted("state_dim", state_dim), counted("action_dim", action_dim)
        hidden, horizon = widths("hidden", hidden), counted("horizon", horizon)
        sweeps = None if sweeps is None else counted("sweeps", sweeps)
        self.state_dim, self.action_dim, self.horizon, self.stochastic, self.sweeps = (
            state_dim,
            action_dim,
            horizon,
            stochastic,
            sweeps,
        )
        self.config = dict(
            state_dim=state_dim,
            action_dim=action_dim,
            hidden=list(hidden),
            horizon=horizon,
            stochastic=stochastic,
            sweeps=sweeps,
            activation=activation,
            layer_norm=layer_norm,
            residual=residual,
        )
        outputs = 2 * state_dim if stochastic else state_dim
        self.mlp = MLP(
            state_dim + horizon * action_dim + horizon,
            outputs,
            hidden,
            activation=activation,
            layer_norm=layer_norm,
            residual=residual,
        )
        self.mlp.initialise()
        for name, shape in (("state", (state_dim,)), ("out", (horizon, state_dim))):
            self.register_buffer(f"{name}_mean", torch.zeros(shape))
            self.register_buffer(f"{name}_std", torch.ones(shape))

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Of one step: (1, d), or (0, d) where it is deterministic."""
        return (int(self.stochastic), self.state_dim)

    @torch.no_grad()
    def set_scales(self, state_mean, state_std, out_mean, out_std) -> None:
        """The data's means and standard deviations: of states (d,), and of s_j − s_0 for j = 1 … H (H, d)."""
        scales = {"state_mean": state_mean, "state_std": state_std, "out_mean": out_mean, "out_std": out_std}
        for name, value in scales.items():
            own, value = getattr(self, name), torch.as_tensor(value)
            positive = not name.endswith("std") or bool((value > 0).all())
            if value.shape != own.shape or not torch.isfinite(value).all() or not positive:
                raise ValueError(f"{name}: expected finite values of shape {tuple(own.shape)} (positive for std), got {value}")
            own.copy_(value)

    def standardise(self, state: Tensor) -> Tensor:
        """(s − mean) / std, (..., d)."""
        return (state - self.state_mean) / self.state_std

    def split(self) -> tuple[Tensor, Tensor, Tensor]:
        """The first layer by inputs: W_s (w, d), W_a (horizon, w, m), and the rows W_j + b (horizon, w)."""
        first, d, m = self.mlp.layers[0], self.state_dim, self.action_dim
        W_s, W_a, W_j = first.weight.split((d, self.horizon * m, self.horizon), 1)
        return W_s, W_a.unflatten(1, (self.horizon, m)).transpose(0, 1), W_j.mT + first.bias

    def first_layer(self, state: Tensor, actions: Tensor, first: int = 1) -> Tensor:
        """z_j for j = first … H from state (..., d) and actions a_0 … a_{H-1} (..., H, m): (..., H − first + 1, w)."""
        W_s, W_a, table = self.split()
        H = actions.shape[-2]
        prefix = torch.einsum("...im,iwm->...iw", actions, W_a[:H]).cumsum(-2)[..., first - 1 :, :]
        return (self.standardise(state) @ W_s.mT).unsqueeze(-2) + prefix + table[first - 1 : H]

    def decode(self, state: Tensor, y: Tensor, n: Tensor | None, first: int = 1) -> Tensor:
        """s_j (..., J, d), j = first …, for the network's rows y (..., J, outputs) and `path_noise` n (..., J, d)."""
        mu, rows = y[..., : self.state_dim], slice(first - 1, first - 1 + y.shape[-2])
        x = mu if n is None else mu + scale(y[..., self.state_dim :]) * n
        return state.unsqueeze(-2) + self.out_mean[rows] + self.out_std[rows] * x

    def path_noise(self, noise: Tensor) -> Tensor | None:
        """n_1 … n_H (..., H, d) of noise (..., H, 1, d); None where it is deterministic."""
        if not self.stochastic:
            return None
        steps = torch.arange(1, noise.shape[-3] + 1, dtype=noise.dtype, device=noise.device)
        return noise[..., 0, :].cumsum(-2) / steps.sqrt().unsqueeze(-1)

    def predict(self, state: Tensor, actions: Tensor, noise: Tensor, first: int = 1) -> Tensor:
        """s_j for j = first … H (..., H − first + 1, d): state (..., d), actions (..., H, m), noise (..., H, *noise_shape).

        Raises:
            ValueError: H beyond the model's horizon.
        """
        self.check_horizon(actions.shape[-2])
        n = self.path_noise(noise)
        y = self.mlp.after_first(self.first_layer(state, actions, first))
        return self.decode(state, y, None if n is None else n[..., first - 1 :, :], first)

    def check_horizon(self, H: int) -> None:
        """ValueError if the model does not reach so far."""
        if self.horizon < H:
            raise ValueError(
                f"horizon: expected at most {self.horizon}, as far as this MultiStepDynamics was made to predict, "
                f"got {H}; take a shorter horizon, or train one with dynamics.horizon={H}"
            )

    def passes(self, H: int) -> int:
        """Sweeps that an imagination of H steps takes; H is exact."""
        return H if self.sweeps is None else min(self.sweeps, H)

    def imagine(self, policy: Callable[[Tensor], Tensor], state: Tensor, noise: Tensor) -> Tensor:
        """s_0 … s_H with the policy in the loop (N, M, H+1, d): policy (N, R, d) -> (N, R, m), state (N, M, d), noise (N, M, H,
        *noise_shape). After `passes(H)` sweeps; differentiable.

        Raises:
            ValueError: H beyond the model's horizon.
        """
        H, s_0 = noise.shape[2], state.unsqueeze(2)
        self.check_horizon(H)

        def act(s: Tensor) -> Tensor:
            return policy(s.flatten(1, 2)).unflatten(1, s.shape[1:3])

        if self.passes(H) == H:  # row by row: each is evaluated when its actions are known
            states, actions = s_0, noise.new_zeros(*noise.shape[:2], 0, self.action_dim)
            for j in range(1, H + 1):
                actions = torch.cat([actions, act(states[:, :, -1:])], 2)
                states = torch.cat([states, self.predict(state, actions, noise[:, :, :j], j)], 2)
            return states
        states = s_0.expand(-1, -1, H + 1, -1)
        for _ in range(self.passes(H)):
            states = torch.cat([s_0, self.predict(state, act(states[:, :, :H]), noise)], 2)
        return states

    def forward(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """The first step: state (..., d), action (..., m), noise (..., *noise_shape) -> next state (..., d)."""
        return self.predict(state, action.unsqueeze(-2), noise.unsqueeze(-3)).squeeze(-2)


def scale(y: Tensor) -> Tensor:
    """σ of the network's second half of outputs."""
    return torch.exp(log_scale_and_slope(y)[0])


def log_scale_and_slope(y: Tensor) -> tuple[Tensor, Tensor]:
    """log σ and its derivative by y."""
    t = torch.tanh(y)
    return LOG_SCALE[0] + LOG_SCALE[1] * t, LOG_SCALE[1] * (1 - t * t)
