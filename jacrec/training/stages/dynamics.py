"""Training of one-step world models (section 3.1.3) on standardised transitions; `objectives` defines what each kind learns."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from jacrec.data.transitions import Transitions
from jacrec.training.config import DynamicsConfig
from jacrec.training.stages.objectives import OneStep, make_dynamics, objective, one_step
from jacrec.training.stages.supervised import BatchedRegression, SupervisedStage, rmse
from jacrec.training.stages.tilt import effective_share, tilt_weights
from jacrec.training.streams import derive_seed, generator


def scales(data: Transitions, target: str = "difference") -> tuple[np.ndarray, ...]:
    """Mean and std of the states, then of the targets, each (d,) float32.

    A constant coordinate is not scaled as an input, and scaled to almost zero as a target.
    """
    state = data.state.astype(np.float64)
    goal = data.next_state - state if target == "difference" else data.next_state.astype(np.float64)
    return (state.mean(0).astype(np.float32), safe_std(state), goal.mean(0).astype(np.float32), safe_std(goal, 1e-6))


def safe_std(x: np.ndarray, where_constant: float = 1.0) -> np.ndarray:
    """Standard deviation over the first axis, float32; `where_constant` where it is below 1e-6."""
    std = np.asarray(x, dtype=np.float64).std(0)
    return np.where(std < 1e-6, where_constant, std).astype(np.float32)


def one_step_errors(dynamics, state: Tensor, action: Tensor, next_state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Squared errors of one-step predictions per transition, in the data's units, averaged over the d dimensions: (n,), (n,).

    The first is the mean over the S samples of each sample's squared error (the error of an imagined trajectory); the second
    is the squared error of the samples' mean (the error of the model as a point predictor).

    Args:
        state, next_state: (n, d).
        action: (n, m).
        noise: (n, S, *noise_shape).
    """
    samples = noise.shape[1]
    predicted = dynamics(_repeat(state, samples), _repeat(action, samples), noise)  # (n, S, d)
    own = (predicted - next_state.unsqueeze(1)).square().mean((1, 2))
    return own, (predicted.mean(1) - next_state).square().mean(-1)


def one_step_metrics(own: Tensor, of_mean: Tensor, state: Tensor, next_state: Tensor) -> dict[str, float]:
    """Metrics from the results of `one_step_errors` (n,), (n,) and the transitions' states (n, d)."""
    value, error = rmse(own)
    return {
        "one_step_rmse": value,
        "one_step_rmse_se": error,
        "one_step_rmse_mean": rmse(of_mean)[0],
        "still_rmse": rmse((next_state - state).square().mean(-1))[0],
    }


def _repeat(x: Tensor, samples: int) -> Tensor:
    return x.unsqueeze(1).expand(-1, samples, -1)


class DynamicsStage(SupervisedStage):
    """A one-step world model trained on the training episodes and tested on held-out ones; a stage of `jacrec.training.loop`.

    `evaluate` reports, on `eval_transitions` fixed held-out transitions with S = `eval_samples` fixed noises each:

    * one_step_rmse: √ of the mean over transitions, samples and dimensions of (ŝ' − s')², in the data's units: the
      Monte-Carlo one-step RMSE of the paper's Table 3 and Figure 2 (per dimension; times √d for the norm of the error).
    * one_step_rmse_se: its standard error over the transitions (delta method). Table 3 prints it divided by their number.
    * one_step_rmse_mean: the same for the mean of the S samples.
    * still_rmse: the same for the prediction s' = s, as a baseline.

    With config.tilt it also reports:

    * one_step_rmse_tilted: one_step_rmse with the tilting weights of the held-out transitions.
    * effective_share: (Σ w)² / (n Σ w²) of the training transitions, their effective share under the weights.

    Args:
        fused: take a step as one call of compiled code; default: if possible, see `jacrec.training.stages.supervised.Regression`.
        capturable: whether a step can be part of a CUDA graph; default: on a GPU, where a graph is then used.
        start: a world model of this configuration whose weights and scales to continue from.
        policy: the trained policy; required if config.tilt is not 0.

    Raises:
        ValueError: config.tilt without a policy, or a multi-step model.
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
        policy: nn.Module | None = None,
    ):
        if config.tilt and policy is None:
            raise ValueError(
                f"dynamics.tilt: expected a trained policy with tilt = {config.tilt}, got none; pass `policy`, or set tilt to 0"
            )
        self.config = config

        def make() -> OneStep:
            return one_step(make_dynamics(data.state_dim, data.action_dim, config))

        def set_scales(model: OneStep) -> None:
            model.set_scales(*scales(data, config.target))

        self.model = self._build(make, set_scales, config, seed, device, dtype, capturable, start, fused)
        state, action, next_state = (as_tensor(a, device, dtype) for a in (data.state, data.action, data.next_state))
        # rows [standardised s, a, target x]
        rows = torch.cat([self.model.standardise(state), action, self.model.encode(state, next_state)], -1)
        self.weights = None if policy is None or not config.tilt else tilt_weights(policy, data, config)
        self._learn_from(*objective(self.model, rows, config, self.weights), seed, device)
        held_out = held_out.rows(choose_rows(len(held_out), config.eval_transitions, derive_seed(seed, self.name, "held out")))
        self.test_weights = None if self.weights is None or policy is None else tilt_weights(policy, held_out, config)
        self.test = tuple(as_tensor(a, device, dtype) for a in (held_out.state, held_out.action, held_out.next_state))
        shape = (len(held_out), config.eval_samples if self.model.noise_shape[0] else 1, *self.model.noise_shape)
        self.test_noise = torch.randn(shape, generator=generator(seed, self.name, "held out noise")).to(device, dtype)

    @staticmethod
    def batched_step(stages: "Sequence[DynamicsStage]") -> BatchedRegression:
        """The stages' step as one batched model's. They can no longer step alone.

        Raises:
            ValueError: an ensemble, which already consists of several networks.
        """
        if stages[0].config.kind == "ensemble":
            raise ValueError(
                "dynamics.kind: expected a kind with a single network to train seeds as one batched model, got 'ensemble'; "
                "train the seeds separately (`batched=False`, --device cpu, or one command each)"
            )
        return SupervisedStage.batched_step(stages)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Held-out errors of the averaged weights; see the class."""
        state, action, next_state = self.test
        own, of_mean = one_step_errors(self.regression.averaged, state, action, next_state, self.test_noise)
        errors = one_step_metrics(own, of_mean, state, next_state)
        if self.weights is not None and self.test_weights is not None:
            errors["one_step_rmse_tilted"] = rmse(own * self.test_weights.to(own))[0]
            errors["effective_share"] = effective_share(self.weights)
        return {**errors, "held_out_transitions": len(state)}


def as_tensor(array: np.ndarray, device, dtype=torch.float32) -> Tensor:
    """The array in single precision, as the data are stored, moved to the device as `dtype`."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(device, dtype)


def choose_rows(rows: int, at_most: int, seed: int) -> np.ndarray:
    """At most `at_most` distinct random row indices, sorted."""
    return np.sort(np.random.default_rng(seed).choice(rows, min(rows, at_most), replace=False))
