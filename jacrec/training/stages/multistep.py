"""Training of the multi-step world model: s_j from s_0 and the first j actions, for j = 1 … H, on segments of episodes."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from jacrec.data.transitions import Transitions
from jacrec.models.dynamics import MultiStepDynamics
from jacrec.models.dynamics.multistep import log_scale_and_slope
from jacrec.training.config import DynamicsConfig
from jacrec.training.stages.dynamics import as_tensor, choose_rows, one_step_errors, one_step_metrics, safe_std
from jacrec.training.stages.examples import Batch, Examples, Push, gather_rows
from jacrec.training.stages.objectives import make_dynamics
from jacrec.training.stages.supervised import SupervisedStage, rmse
from jacrec.training.streams import derive_seed, generator


def segment_lengths(data: Transitions, horizon: int) -> np.ndarray:
    """Number of consecutive transitions from each row within its episode, at most `horizon`: (n,).

    Consecutive means that the next state of one row is the state of the next: segments cross neither the end of an episode
    nor a row that the reader has dropped.
    """
    n = len(data)
    follows = np.zeros(n, dtype=bool)
    follows[:-1] = (data.episode[1:] == data.episode[:-1]) & (data.next_state[:-1] == data.state[1:]).all(1)
    ends = np.where(follows, n, np.arange(n))
    return np.minimum(np.minimum.accumulate(ends[::-1])[::-1] - np.arange(n) + 1, horizon)


def segments(data: Transitions, horizon: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every row: the actions from it (n, H, m), the states after them (n, H, d), both zero-padded, and `segment_lengths` (n,).

    Raises:
        ValueError: no segment has length `horizon`.
    """
    n_k = segment_lengths(data, horizon)
    if n_k.max() < horizon:
        raise ValueError(
            f"dynamics.horizon: expected segments of {horizon} consecutive transitions in the data, got at most "
            f"{n_k.max()}; use a shorter horizon"
        )
    index = np.minimum(np.arange(len(data))[:, None] + np.arange(horizon), len(data) - 1)  # (n, H)
    inside = (np.arange(horizon) < n_k[:, None])[..., None]
    return data.action[index] * inside, data.next_state[index] * inside, n_k


def displacement_scales(state: np.ndarray, following: np.ndarray, n_k: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean and std of the states (d,), and of s_j − s_0 over the segments that reach j, (H, d); float32."""
    moved = [following[n_k > j, j] - state[n_k > j].astype(np.float64) for j in range(following.shape[1])]
    return (
        state.astype(np.float64).mean(0).astype(np.float32),
        safe_std(state),
        np.stack([x.mean(0) for x in moved]).astype(np.float32),
        np.stack([safe_std(x, 1e-6) for x in moved]),
    )


@dataclass(frozen=True)
class GaussianStepBatch(Batch):
    """Goals (..., B, d) of a network that predicts mean and scale, with β-NLL loss (Seitzer et al. 2022) for β = 1.

    Each term of the likelihood is multiplied by σ², without gradient. The mean is then fitted by least squares, and no row is
    discounted as uncertain; the scale's gradient is σ² − error², proportional to the errors it describes.
    """

    def loss_and_gradient(self, prediction: Tensor, push: Push) -> tuple[Tensor, Tensor]:
        """The mean negative log-likelihood without its constant, and the gradient of the β-NLL."""
        mean, raw = prediction.chunk(2, -1)
        log_scale, slope = log_scale_and_slope(raw)
        error = mean - self.goal
        variance = torch.exp(2 * log_scale)
        square = error.square() / variance
        size = error.shape[-2] * error.shape[-1]
        loss = (0.5 * square + log_scale).mean((-2, -1))
        return loss, torch.cat([error / size, (1 - square) * variance * slope / size], -1)


@dataclass(frozen=True)
class StepExamples(Examples):
    """Rows [s, a_0 … a_{H-1}, x_1 … x_H, n_k]; every call selects one step j of each row, uniform on 1 … n_k."""

    horizon: int
    action_dim: int
    stochastic: bool

    @property
    def least_squares(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Unless the uncertainty is learned."""
        return not self.stochastic

    def __call__(self, index: Tensor, *random: Tensor) -> Batch:
        """The batch of these rows. `random` is uniform numbers (..., B) in [0, 1), which select j."""
        H, m = self.horizon, self.action_dim
        rows = gather_rows(self.rows, index)
        d = self.split - H * m
        state, actions, x, n_k = rows.split((d, H * m, H * d, 1), -1)
        # single precision may round up to n_k, a step that does not exist
        j = torch.minimum((random[0].unsqueeze(-1) * n_k).floor(), n_k - 1).long()  # j − 1, (..., B, 1)
        before = torch.arange(H, device=rows.device) <= j  # (..., B, H)
        masked = actions.unflatten(-1, (H, m)) * before.unsqueeze(-1)
        which = torch.arange(H, device=rows.device) == j
        goal = x.unflatten(-1, (H, d)).gather(-2, j.unsqueeze(-1).expand(*j.shape, d)).squeeze(-2)
        inputs = torch.cat([state, masked.flatten(-2), which.to(rows.dtype)], -1)
        return (GaussianStepBatch if self.stochastic else Batch)(inputs, goal)


class MultiStepStage(SupervisedStage):
    """A `MultiStepDynamics` trained on the training episodes and tested on held-out ones; a stage of `jacrec.training.loop`.

    `evaluate` reports the errors of `DynamicsStage` for the first step, and rmse_step_1 … rmse_step_H: √ of the mean squared
    error of s_j, in the data's units and per dimension, over at most `eval_transitions` held-out segments of full length.
    `fused`, `capturable` and `start` are as in `DynamicsStage`.

    Raises:
        ValueError: no segment of the data has length config.horizon.
    """

    name = "dynamics"

    def __init__(
        self,
        data: Transitions,
        held_out: Transitions,
        config: DynamicsConfig,
        seed: int,
        device="cpu",
        dtype=torch.float32,
        *,
        fused: bool | None = None,
        capturable: bool | None = None,
        start: nn.Module | None = None,
    ):
        self.config, H = config, config.horizon
        actions, following, n_k = segments(data, H)
        scales = displacement_scales(data.state, following, n_k)

        def make() -> MultiStepDynamics:
            model = make_dynamics(data.state_dim, data.action_dim, config)
            assert isinstance(model, MultiStepDynamics)
            return model

        def set_scales(model: MultiStepDynamics) -> None:
            model.set_scales(*scales)

        self.model = self._build(make, set_scales, config, seed, device, dtype, capturable, start, fused)
        state = as_tensor(data.state, device, dtype)
        goal = as_tensor(following, device, dtype)
        x = (goal - state.unsqueeze(1) - self.model.out_mean) / self.model.out_std
        columns = [self.model.standardise(state), as_tensor(actions, device, dtype).flatten(1), x.flatten(1)]
        rows = torch.cat([*columns, as_tensor(n_k[:, None], device, dtype)], -1)
        split = data.state_dim + H * data.action_dim
        n = len(rows)

        def draw(generator: torch.Generator, block: int) -> tuple[Tensor, ...]:
            shape = block, config.batch_size
            return torch.randint(n, shape, generator=generator), torch.rand(shape, generator=generator, dtype=dtype)

        examples = StepExamples(rows, split, H, data.action_dim, config.stochastic)
        self._learn_from(examples, draw, seed, device)
        actions, following, n_k = segments(held_out, H)
        full = np.flatnonzero(n_k == H)
        full = full[choose_rows(len(full), config.eval_transitions, derive_seed(seed, self.name, "held out"))]
        self.test = tuple(as_tensor(a[full], device, dtype) for a in (held_out.state, actions, following))
        shape = (len(full), config.eval_samples if config.stochastic else 1, H, *self.model.noise_shape)
        self.test_noise = torch.randn(shape, generator=generator(seed, self.name, "held out noise")).to(device, dtype)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Held-out errors of the averaged weights; see the class."""
        state, actions, following = self.test
        model = self.regression.averaged
        own, of_mean = one_step_errors(model, state, actions[:, 0], following[:, 0], self.test_noise[:, :, 0])
        steps = multi_step_errors(model, state, actions, following, self.test_noise)
        by_step = {f"rmse_step_{j + 1}": rmse(steps[:, j])[0] for j in range(steps.shape[1])}
        return {**one_step_metrics(own, of_mean, state, following[:, 0]), **by_step, "held_out_transitions": len(state)}


@torch.no_grad()
def multi_step_errors(dynamics, state: Tensor, actions: Tensor, following: Tensor, noise: Tensor) -> Tensor:
    """Squared errors of s_1 … s_H per segment, in the data's units, averaged over dimensions and samples: (n, H).

    A one-step model is rolled out under the same actions, so that the two kinds can be compared.

    Args:
        state: (n, d).
        actions: (n, H, m).
        following: (n, H, d), the recorded states after the actions.
        noise: (n, S, H, *noise_shape).
    """
    S, H = noise.shape[1:3]
    s, a = state.unsqueeze(1).expand(-1, S, -1), actions.unsqueeze(1).expand(-1, S, -1, -1)
    if isinstance(dynamics, MultiStepDynamics):
        predicted = dynamics.predict(s, a, noise)
    else:
        steps = []
        for j in range(H):
            s = dynamics(s, a[:, :, j], noise[:, :, j])
            steps.append(s)
        predicted = torch.stack(steps, 2)
    return (predicted - following.unsqueeze(1)).square().mean((1, 3))
