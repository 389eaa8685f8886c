"""The reward model's training (section 3.2): least squares on standardised states, raw actions and standardised rewards."""

import torch
from torch import Tensor, nn

from jacrec.data.transitions import Transitions
from jacrec.models.networks import RewardModel
from jacrec.training.config import RewardConfig
from jacrec.training.stages.dynamics import as_tensor, choose_rows, safe_std
from jacrec.training.stages.examples import Examples
from jacrec.training.stages.supervised import Regression, SupervisedStage, make_update, rmse
from jacrec.training.streams import BatchStream, derive_seed


class RewardStage(SupervisedStage):
    """The reward model on the training episodes, tested on held-out ones; a stage of `jacrec.training.loop`.

    It learns reward_scale · r, the critic's own scale. `evaluate` reports on `eval_transitions` fixed held-out
    transitions, in that scale: reward_rmse = √ mean (r̂ − r)² (the paper's Table 4 and Figure 3), reward_rmse_se its
    standard error over the transitions, reward_std the rewards' own standard deviation for scale. `capturable` makes a step
    fit for a CUDA graph; None: on a GPU, where the graph then is used. `start` is a reward model of this configuration to
    go on from, with its weights and its scales.
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
        capturable: bool | None = None,
        start: nn.Module | None = None,
    ):
        self.config, self.updates = config, config.updates

        def network() -> RewardModel:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(seed, self.name, "networks"))
                model = RewardModel(data.state_dim, data.action_dim, config.hidden, activation=config.activation)
            if start is not None:
                model.load_state_dict(start.state_dict())
                return model.to(device, dtype)
            reward = data.reward.astype("float64") * reward_scale
            model.state_mean.copy_(torch.from_numpy(data.state.mean(0, dtype="float64")))
            model.state_std.copy_(torch.from_numpy(safe_std(data.state)))
            model.reward_mean.fill_(float(reward.mean()))
            model.reward_std.fill_(float(safe_std(reward)))
            return model.to(device, dtype)

        self.model = network()
        capturable = torch.device(device).type == "cuda" if capturable is None else capturable
        self.regression = Regression(self.model, network(), self.model.mlp, "mlp.", config, capturable)
        state, action, reward = (as_tensor(a, device, dtype) for a in (data.state, data.action, data.reward))
        reward = reward.mul(reward_scale).unsqueeze(-1)
        goal = (reward - self.model.reward_mean) / self.model.reward_std
        rows = torch.cat([(state - self.model.state_mean) / self.model.state_std, action, goal], -1)
        self.examples = Examples(rows, rows.shape[-1] - 1)
        self.descend = make_update(self.regression, self.examples, capturable)
        n = len(rows)

        def draw(generator: torch.Generator, block: int) -> tuple[Tensor, ...]:
            return (torch.randint(n, (block, config.batch_size), generator=generator),)

        self.stream = BatchStream(seed, self.name, draw, device)
        held_out = held_out.rows(choose_rows(len(held_out), config.eval_transitions, derive_seed(seed, self.name, "held out")))
        tests = held_out.state, held_out.action, held_out.reward * reward_scale
        self.test = tuple(as_tensor(a, device, dtype) for a in tests)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The held-out errors; see the class."""
        state, action, reward = self.test
        value, error = rmse((self.regression.averaged(state, action) - reward).square())
        return {
            "reward_rmse": value,
            "reward_rmse_se": error,
            "reward_std": reward.double().std(correction=0).item(),
            "held_out_transitions": len(reward),
        }
