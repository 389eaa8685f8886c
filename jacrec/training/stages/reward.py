"""Training of the reward model (section 3.2): least squares on standardised states, raw actions and standardised rewards."""

import torch
from torch import Tensor, nn

from jacrec.data.transitions import Transitions
from jacrec.models.networks import RewardModel
from jacrec.training.config import RewardConfig
from jacrec.training.stages.dynamics import as_tensor, choose_rows, safe_std
from jacrec.training.stages.examples import Examples
from jacrec.training.stages.supervised import SupervisedStage, rmse
from jacrec.training.streams import derive_seed


class RewardStage(SupervisedStage):
    """The reward model trained on the training episodes and tested on held-out ones; a stage of `jacrec.training.loop`.

    It learns reward_scale · r, the scale that the critic uses. On `eval_transitions` fixed held-out transitions, in that
    scale, `evaluate` reports reward_rmse = √ mean (r̂ − r)² (the paper's Table 4 and Figure 3), its standard error over the
    transitions reward_rmse_se, and as a baseline the rewards' standard deviation reward_std.

    Args:
        fused: take a step as one call of compiled code; default: if possible, see `jacrec.training.stages.supervised.Regression`.
        capturable: whether a step can be part of a CUDA graph; default: on a GPU, where a graph is then used.
        start: a reward model of this configuration whose weights and scales to continue from.
    """

    name = "reward"

    def __init__(
        self,
        data: Transitions,
        held_out: Transitions,
        config: RewardConfig,
        seed: int,
        reward_scale: float = 1.0,
        device="cpu",
        dtype=torch.float32,
        *,
        fused: bool | None = None,
        capturable: bool | None = None,
        start: nn.Module | None = None,
    ):
        self.config = config

        def make() -> RewardModel:
            return RewardModel(data.state_dim, data.action_dim, config.hidden, activation=config.activation)

        def set_scales(model: RewardModel) -> None:
            reward = data.reward.astype("float64") * reward_scale
            model.state_mean.copy_(torch.from_numpy(data.state.mean(0, dtype="float64")))
            model.state_std.copy_(torch.from_numpy(safe_std(data.state)))
            model.reward_mean.fill_(float(reward.mean()))
            model.reward_std.fill_(float(safe_std(reward)))

        self.model = self._build(make, set_scales, config, seed, device, dtype, capturable, start, fused)
        state, action, reward = (as_tensor(a, device, dtype) for a in (data.state, data.action, data.reward))
        reward = reward.mul(reward_scale).unsqueeze(-1)
        goal = (reward - self.model.reward_mean) / self.model.reward_std
        rows = torch.cat([(state - self.model.state_mean) / self.model.state_std, action, goal], -1)
        n = len(rows)

        def draw(generator: torch.Generator, block: int) -> tuple[Tensor, ...]:
            return (torch.randint(n, (block, config.batch_size), generator=generator),)

        self._learn_from(Examples(rows, rows.shape[-1] - 1), draw, seed, device)
        held_out = held_out.rows(choose_rows(len(held_out), config.eval_transitions, derive_seed(seed, self.name, "held out")))
        tests = held_out.state, held_out.action, held_out.reward * reward_scale
        self.test = tuple(as_tensor(a, device, dtype) for a in tests)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Held-out errors of the averaged weights; see the class."""
        state, action, reward = self.test
        value, error = rmse((self.regression.averaged(state, action) - reward).square())
        return {
            "reward_rmse": value,
            "reward_rmse_se": error,
            "reward_std": reward.double().std(correction=0).item(),
            "held_out_transitions": len(reward),
        }
