"""The world model's training (section 3.1.3) on standardised transitions, whatever its kind (`jacrec.training.stages.objectives`)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from jacrec.data.transitions import Transitions
from jacrec.training.config import DynamicsConfig
from jacrec.training.stages.objectives import make_dynamics, network_of, objective, one_step
from jacrec.training.stages.supervised import BatchedRegression, Regression, SupervisedStage, make_update, rmse
from jacrec.training.stages.tilt import effective_share, tilt_weights
from jacrec.training.streams import BatchStream, derive_seed, generator


def scales(data: Transitions, target: str = "difference") -> tuple[np.ndarray, ...]:
    """state mean and std, target mean and std, each (d,) float32.

    A coordinate that never changes is left unscaled as an input, and scaled to almost nothing as a target.
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


class DynamicsStage(SupervisedStage):
    """The world model on the training episodes, tested on held-out ones; a stage of `jacrec.training.loop`.

    What `evaluate` reports, on `eval_transitions` fixed held-out transitions with S = `eval_samples` fixed noises each:

    * one_step_rmse: √ of the mean over transitions, samples and dimensions of (ŝ' − s')², in the data's units: the
      Monte-Carlo one-step RMSE of the paper's Table 3 and Figure 2 (per dimension; times √d for the norm of the error).
    * one_step_rmse_se: its standard error over the transitions (delta method). Table 3 prints it divided by their number.
    * one_step_rmse_mean: the same for the mean of the S samples.
    * still_rmse: of the prediction s' = s, for scale.

    `capturable` makes a step fit for a CUDA graph; None: on a GPU, where the graph then is used. `start` is a world model of
    this configuration to go on from, with its weights and its scales. `policy` is the trained one that config.tilt asks for;
    then `evaluate` reports too

    * one_step_rmse_tilted: one_step_rmse under the held-out transitions' own weights.
    * effective_share: (Σ w)² / (n Σ w²) of the training transitions, what the weights leave of them.

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
        capturable: bool | None = None,
        start: nn.Module | None = None,
        policy: nn.Module | None = None,
    ):
        if config.tilt and policy is None:
            raise ValueError(
                f"dynamics.tilt: expected a trained policy to tilt towards, got none with tilt = {config.tilt}; "
                "hand it over (`policy`), or set tilt to 0"
            )
        self.config, self.updates, self.device = config, config.updates, device
        d, m = data.state_dim, data.action_dim

        def network():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(seed, self.name, "networks"))
                model = one_step(make_dynamics(d, m, config))
            if start is None:
                model.set_scales(*scales(data, config.target))
            else:
                model.load_state_dict(start.state_dict())
            return model.to(device) if dtype == torch.float32 else model.to(device, dtype)

        self.model = network()
        mlp, prefix = network_of(self.model)
        capturable = torch.device(device).type == "cuda" if capturable is None else capturable
        self.regression = Regression(self.model, network(), mlp, prefix, config, capturable)
        state, action, next_state = (as_tensor(a, device, dtype) for a in (data.state, data.action, data.next_state))
        # rows [standardised s, a, target x]
        rows = torch.cat([self.model.standardise(state), action, self.model.encode(state, next_state)], -1)
        self.weights = None if policy is None or not config.tilt else tilt_weights(policy, data, config)
        self.examples, draw = objective(self.model, rows, config, self.weights)
        self.stream = BatchStream(seed, self.name, draw, device)
        self.descend = make_update(self.regression, self.examples, capturable)
        held_out = held_out.rows(choose_rows(len(held_out), config.eval_transitions, derive_seed(seed, self.name, "held out")))
        self.test_weights = None if self.weights is None or policy is None else tilt_weights(policy, held_out, config)
        self.test = tuple(as_tensor(a, device, dtype) for a in (held_out.state, held_out.action, held_out.next_state))
        shape = (len(held_out), config.eval_samples if self.model.noise_shape[0] else 1, *self.model.noise_shape)
        self.test_noise = torch.randn(shape, generator=generator(seed, self.name, "held out noise")).to(device, dtype)

    @staticmethod
    def batched_step(stages: "Sequence[DynamicsStage]") -> BatchedRegression:
        """Their step as one batched model's; they can no longer step alone.

        Raises:
            ValueError: an ensemble, which is several networks already.
        """
        if stages[0].config.kind == "ensemble":
            raise ValueError(
                "dynamics: expected a kind of one network for seeds side by side, got 'ensemble'; "
                "train the seeds one by one (`batched=False`, --device cpu, or a command for each)"
            )
        return SupervisedStage.batched_step(stages)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The held-out errors of the averaged weights; see the class."""
        state, action, next_state = self.test
        own, of_mean = one_step_errors(self.regression.averaged, state, action, next_state, self.test_noise)
        value, error = rmse(own)
        still, _ = rmse((next_state - state).square().mean(-1))
        tilted: dict[str, float] = {}
        if self.weights is not None and self.test_weights is not None:
            tilted = {
                "one_step_rmse_tilted": rmse(own * self.test_weights.to(own))[0],
                "effective_share": effective_share(self.weights),
            }
        return {
            "one_step_rmse": value,
            "one_step_rmse_se": error,
            "one_step_rmse_mean": rmse(of_mean)[0],
            **tilted,
            "still_rmse": still,
            "held_out_transitions": len(state),
        }


def as_tensor(array: np.ndarray, device, dtype=torch.float32) -> Tensor:
    """The array in single precision, as the data are, brought to the device as `dtype`."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(device, dtype)


def choose_rows(rows: int, at_most: int, seed: int) -> np.ndarray:
    """At most `at_most` distinct row numbers, in order."""
    return np.sort(np.random.default_rng(seed).choice(rows, min(rows, at_most), replace=False))
