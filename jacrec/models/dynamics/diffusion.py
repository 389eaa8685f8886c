"""The diffusion world model f_θ(s, a, ε) of section 3.1: a reverse chain with all of its noise as an argument."""

from collections.abc import Sequence

import torch
from torch import Tensor

from jacrec.models.dynamics.chain import ChainDynamics
from jacrec.models.dynamics.schedule import alphas, reverse_steps
from jacrec.models.networks import Denoiser, written
from jacrec.util.errors import counted, expect_one_of, real, widths


@written
class DiffusionDynamics(ChainDynamics):
    """s' = f_θ(s, a, ε), ε = (z_K … z_0): the composition of g_K and h_K … h_1, (23)–(25).

    The chain runs on x, the standardised state difference (or next state, `target`), conditioned on the standardised
    state and the raw action; f_θ decodes s^(0). `steps` levels are trained; `levels` picks those that sampling visits
    (K = their number). `noise_shape` is (K+1, d) and noise[..., k, :] is z_k.

    Args:
        steps: number of diffusion levels that training knows.
        schedule: "vp", "cosine" or "linear" (`jacrec.models.dynamics.schedule.alphas`).
        prediction: what the network predicts, "epsilon" or "x0".
        sampler: "ddpm", "ddim" (σ scaled by `eta`), or "printed" for (1) as it stands in the paper.
        levels: ascending training levels visited by the sampler; None visits all.
    """

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
        state_dim, action_dim, hidden = self.state_dim, self.action_dim, widths("hidden", hidden)
        steps, eta = counted("steps", steps), real("eta", eta)
        levels = None if levels is None else list(widths("levels", levels, 0))
        self.config = dict(
            state_dim=state_dim,
            action_dim=action_dim,
            hidden=list(hidden),
            steps=steps,
            schedule=schedule,
            prediction=prediction,
            sampler=sampler,
            eta=eta,
            levels=levels,
            target=target,
            activation=activation,
            layer_norm=layer_norm,
            residual=residual,
            embedding_dim=embedding_dim,
        )
        self.prediction, self.steps = prediction, steps
        self.denoiser = Denoiser(
            state_dim,
            action_dim,
            hidden,
            activation=activation,
            layer_norm=layer_norm,
            residual=residual,
            embedding_dim=embedding_dim,
        )
        alpha = alphas(schedule, steps)
        tables = reverse_steps(alpha, sampler=sampler, prediction=prediction, eta=eta, levels=levels)
        levels = tables.level.tolist()
        self.set_chain(levels, tables.c_u.tolist(), tables.c_net.tolist(), tables.sigma.tolist(), noises=len(levels) + 1)
        self.register_buffer("alpha_bar", torch.cumprod(alpha, 0), persistent=False)

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
