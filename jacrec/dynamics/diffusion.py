"""The diffusion world model f_θ(s, a, ε) of section 3.1: a reverse chain with all of its noise as an argument."""

from collections.abc import Sequence

import torch
from torch import Tensor

from jacrec.dynamics.base import ScaledDynamics
from jacrec.dynamics.schedule import alphas, reverse_steps
from jacrec.errors import expect_one_of
from jacrec.networks import Denoiser, written


@written
class DiffusionDynamics(ScaledDynamics):
    """s' = f_θ(s, a, ε), ε = (z_K … z_0): the composition of g_K and h_K … h_1, (23)–(25).

    The chain runs on x, the standardised state difference (or next state, `target`), conditioned on the standardised
    state and the raw action; f_θ decodes s^(0). `steps` levels are trained; `levels` picks those that sampling visits
    (K = their number). `noise_shape` is (K+1, d) and noise[..., k, :] is z_k.

    Args:
        steps: number of diffusion levels that training knows.
        schedule: "vp", "cosine" or "linear" (`jacrec.dynamics.schedule.alphas`).
        prediction: what the network predicts, "epsilon" or "x0".
        sampler: "ddpm", "ddim" (σ scaled by `eta`), or "printed" for (1) as it stands in the paper.
        levels: ascending training levels visited by the sampler; None visits all.
    """

    level: Tensor
    alpha_bar: Tensor

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256, 256),
        *,
        steps: int = 10,
        schedule: str = "vp",
        prediction: str = "epsilon",
        sampler: str = "ddpm",
        eta: float = 0.0,
        levels: Sequence[int] | None = None,
        target: str = "difference",
        activation: str = "relu",
        layer_norm: bool = False,
        residual: bool = False,
        embedding_dim: int = 32,
    ):
        expect_one_of("target", target, ("difference", "state"))
        super().__init__(state_dim, action_dim, target)
        self.config = dict(
            state_dim=state_dim, action_dim=action_dim, hidden=list(hidden), steps=steps, schedule=schedule,
            prediction=prediction, sampler=sampler, eta=eta, levels=None if levels is None else list(levels),
            target=target, activation=activation, layer_norm=layer_norm, residual=residual, embedding_dim=embedding_dim,
        )  # fmt: skip
        self.prediction, self.steps = prediction, steps
        self.denoiser = Denoiser(state_dim, action_dim, hidden, activation=activation, layer_norm=layer_norm,
                                 residual=residual, embedding_dim=embedding_dim)  # fmt: skip
        alpha = alphas(schedule, steps)
        tables = reverse_steps(alpha, sampler=sampler, prediction=prediction, eta=eta, levels=levels)
        # plain floats: exact in every dtype, and no device to wait for when a step reads them
        self.c_u, self.c_net, self.sigma = tables.c_u.tolist(), tables.c_net.tolist(), tables.sigma.tolist()
        self.levels: tuple[int, ...] = tuple(tables.level.tolist())
        self.register_buffer("level", tables.level, persistent=False)
        self.register_buffer("alpha_bar", torch.cumprod(alpha, 0), persistent=False)

    @property
    def diffusion_steps(self) -> int:
        """K, the number of reverse steps that one transition takes."""
        return len(self.level)

    @property
    def noise_shape(self) -> tuple[int, int]:
        """(K+1, d): the shape of one transition's noise."""
        return (self.diffusion_steps + 1, self.state_dim)

    def g(self, z: Tensor) -> Tensor:
        """g_K, (23): the base sample is the noise itself."""
        return z

    def h(self, k: int, u: Tensor, state: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """h_k, (1): one reverse step from s^(k) = u to s^(k−1); `state` in the data's units. All (..., d), action (..., m)."""
        i = k - 1
        net = self.denoiser(u, self.level[i].expand(u.shape[:-1]), self.standardise(state), action)
        return self.c_u[i] * u + self.c_net[i] * net + self.sigma[i] * z

    def forward(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """state (..., d), action (..., m), noise (..., K+1, d) -> next state (..., d)."""
        K = self.diffusion_steps
        u = self.g(noise[..., K, :])  # (23)
        for k in range(K, 0, -1):
            u = self.h(k, u, state, action, noise[..., k - 1, :])  # (24)
        return self.decode(state, u)  # (25)

    def loss(self, state: Tensor, action: Tensor, next_state: Tensor, k: Tensor, noise: Tensor) -> Tensor:
        """The objective of section 3.1.3 per row, mean over dimensions: (..., ).

        The corrupted sample is √ᾱ_k x + √(1−ᾱ_k) ε (section 3.1.1's marginal). k (...) int64 in 1..steps, noise (..., d).
        """
        x = self.encode(state, next_state)
        bar = self.alpha_bar[k - 1].to(x).unsqueeze(-1)
        corrupted = bar.sqrt() * x + (1 - bar).sqrt() * noise
        prediction = self.denoiser(corrupted, k, self.standardise(state), action)
        goal = noise if self.prediction == "epsilon" else x
        return (prediction - goal).square().mean(-1)
