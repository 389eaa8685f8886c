"""The world model's training (section 3.1.3): the denoiser, or the deterministic baseline, on standardised transitions."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from jacrec.data.transitions import Transitions
from jacrec.dynamics import DeterministicDynamics, DiffusionDynamics
from jacrec.networks import step_embedding
from jacrec.training.config import DynamicsConfig
from jacrec.training.replay import Replay
from jacrec.training.streams import BatchStream, generator, seed_of
from jacrec.training.supervised import Regression, rmse


def make_dynamics(state_dim: int, action_dim: int, config: DynamicsConfig) -> DiffusionDynamics | DeterministicDynamics:
    """The untrained world model of a configuration."""
    common: dict[str, Any] = dict(target=config.target, activation=config.activation, layer_norm=config.layer_norm,
                                  residual=config.residual)  # fmt: skip
    if config.kind == "deterministic":
        return DeterministicDynamics(state_dim, action_dim, config.hidden, **common)
    return DiffusionDynamics(
        state_dim, action_dim, config.hidden, steps=config.steps, schedule=config.schedule, prediction=config.prediction,
        sampler=config.sampler, eta=config.eta, levels=config.levels, **common,
    )  # fmt: skip


def scales(data: Transitions, target: str = "difference") -> tuple[np.ndarray, ...]:
    """state mean and std, target mean and std, each (d,) float32.

    A coordinate that never changes is left unscaled as an input, and scaled to almost nothing as a target.
    """
    state = data.state.astype(np.float64)
    goal = data.next_state - state if target == "difference" else data.next_state.astype(np.float64)
    return (state.mean(0).astype(np.float32), spread(state), goal.mean(0).astype(np.float32), spread(goal, 1e-6))


def spread(x: np.ndarray, where_constant: float = 1.0) -> np.ndarray:
    """Standard deviation over the first axis, float32; `where_constant` where it is below 1e-6."""
    std = np.asarray(x, dtype=np.float64).std(0)
    return np.where(std < 1e-6, where_constant, std).astype(np.float32)


def one_step_errors(dynamics, state: Tensor, action: Tensor, next_state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Squared errors of one-step predictions per transition, in the data's units, averaged over the d dimensions: (n,), (n,).

    state, next_state (n, d), action (n, m), noise (n, S, *noise_shape). The first is the mean over the S samples of
    each sample's own squared error (what an imagined trajectory suffers); the second is that of the samples' mean (the
    model as a point predictor).
    """
    samples = noise.shape[1]
    predicted = dynamics(_repeat(state, samples), _repeat(action, samples), noise)  # (n, S, d)
    own = (predicted - next_state.unsqueeze(1)).square().mean((1, 2))
    return own, (predicted.mean(1) - next_state).square().mean(-1)


def _repeat(x: Tensor, samples: int) -> Tensor:
    return x.unsqueeze(1).expand(-1, samples, -1)


class DynamicsStage:
    """The world model on the training episodes, tested on held-out ones; a stage of `jacrec.training.loop`.

    What `evaluate` reports, on `eval_transitions` fixed held-out transitions with S = `eval_samples` fixed noises each:

    * one_step_rmse: √ of the mean over transitions, samples and dimensions of (ŝ' − s')², in the data's units: the
      Monte-Carlo one-step RMSE of the paper's Table 3 and Figure 2 (per dimension; times √d for the norm of the error).
    * one_step_rmse_se: its standard error over the transitions (delta method). Table 3 prints it divided by their number.
    * one_step_rmse_mean: the same for the mean of the S samples.
    * still_rmse: of the prediction s' = s, for scale.

    `capturable` makes a step fit for a CUDA graph; None: on a GPU, where the graph then is used.
    """

    name = "dynamics"

    def __init__(
        self,
        data: Transitions,
        held_out: Transitions,
        config: DynamicsConfig,
        seed: int,
        device="cpu",
        *,
        capturable: bool | None = None,
    ):
        self.config, self.updates, self.device = config, config.updates, device
        d, m = data.state_dim, data.action_dim

        def network():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(seed, self.name, "networks"))
                model = make_dynamics(d, m, config)
            model.set_scales(*scales(data, config.target))
            return model.to(device)

        self.model = network()
        diffusion = isinstance(self.model, DiffusionDynamics)
        mlp = self.model.denoiser.mlp if isinstance(self.model, DiffusionDynamics) else self.model.mlp
        prefix = "denoiser.mlp." if diffusion else "mlp."
        capturable = torch.device(device).type == "cuda" if capturable is None else capturable
        self.regression = Regression(self.model, network(), mlp, prefix, config, capturable)
        self.descend = Replay(self._descend, lambda: self.state().values()) if capturable else self._descend
        state, action, next_state = (as_tensor(a, device) for a in (data.state, data.action, data.next_state))
        # rows [standardised s, a, target x]
        self.rows = torch.cat([self.model.standardise(state), action, self.model.encode(state, next_state)], -1)
        self.split = d + m

        def draw(generator: torch.Generator, block: int) -> tuple[Tensor, ...]:
            shape = (block, config.batch_size)
            index = torch.randint(len(self.rows), shape, generator=generator)
            if not diffusion:
                return (index,)
            return index, torch.randint(config.steps, shape, generator=generator), torch.randn(*shape, d, generator=generator)

        self.stream = BatchStream(seed, self.name, draw, device)
        if isinstance(self.model, DiffusionDynamics):
            levels = torch.arange(1, config.steps + 1, device=device)
            self.embedding = step_embedding(levels, self.model.denoiser.embedding_dim).float()  # (K, e)
            self.signal = self.model.alpha_bar.sqrt().float().unsqueeze(-1)  # (K, 1)
            self.corruption = (1 - self.model.alpha_bar).sqrt().float().unsqueeze(-1)  # (K, 1)
        held_out = held_out.rows(choose_rows(len(held_out), config.eval_transitions, seed_of(seed, self.name, "held out")))
        self.test = tuple(as_tensor(a, device) for a in (held_out.state, held_out.action, held_out.next_state))
        shape = (len(held_out), config.eval_samples if diffusion else 1, *self.model.noise_shape)
        self.test_noise = torch.randn(shape, generator=generator(seed, self.name, "held out noise")).to(device)

    def step(self, update: int) -> dict[str, Tensor]:
        """Update number `update`, counted from 0."""
        self.regression.schedule(update)
        return self.descend(*self.stream.at(update))

    @torch.no_grad()
    def _descend(self, index: Tensor, *random: Tensor) -> dict[str, Tensor]:
        rows = self.rows.index_select(0, index)
        s_a, x = rows[:, : self.split], rows[:, self.split :]
        if not random:
            return {"loss": self.regression.descend(s_a, x)}
        k, noise = random
        corrupted = self.signal.index_select(0, k) * x + self.corruption.index_select(0, k) * noise
        inputs = torch.cat([corrupted, s_a, self.embedding.index_select(0, k)], -1)
        goal = noise if self.config.prediction == "epsilon" else x
        return {"loss": self.regression.descend(inputs, goal)}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The held-out errors of the averaged weights; see the class."""
        state, action, next_state = self.test
        own, of_mean = one_step_errors(self.regression.averaged, state, action, next_state, self.test_noise)
        value, error = rmse(own)
        still, _ = rmse((next_state - state).square().mean(-1))
        return {"one_step_rmse": value, "one_step_rmse_se": error, "one_step_rmse_mean": rmse(of_mean)[0],
                "still_rmse": still, "held_out_transitions": len(state)}  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """The live tensors that a checkpoint holds."""
        return self.regression.state()

    def modules(self) -> dict[str, torch.nn.Module]:
        """The finished network by file name: the averaged weights."""
        return {"dynamics": self.regression.averaged}


def as_tensor(array: np.ndarray, device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(device)


def choose_rows(rows: int, at_most: int, seed: int) -> np.ndarray:
    """At most `at_most` distinct row numbers, in order."""
    return np.sort(np.random.default_rng(seed).choice(rows, min(rows, at_most), replace=False))
