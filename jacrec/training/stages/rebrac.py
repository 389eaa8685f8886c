"""ReBRAC (Tarasov et al. 2023), which trains π_ψ and Q_φ (section 3.3): the reference's updates, with hand-written derivatives.

    critic:  y = r + γ (1−d) [min_i Q̄_i(s', a') − β₂ ‖a' − â'‖²],   a' = clip(π̄(s') + clip(σ n, ±c), ±1)
             minimise Σ_i mean (Q_i(s, a) − y)²
    actor:   minimise mean [β₁ ‖π(s) − a‖² − λ min_i Q_i(s, π(s))],   λ = 1 / mean|min_i Q_i|, without gradient

The actor and both targets move at every `policy_freq`-th critic update, including the first. As in the reference, the
actor's target follows the actor before its update, and the critics' target follows the critics after theirs.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from jacrec.data.transitions import Transitions
from jacrec.models.networks import MLP, Actor, TwinCritic
from jacrec.models.world import value_scale
from jacrec.training.config import ReBRACConfig
from jacrec.training.cuda_graph import CapturedStep
from jacrec.training.flat import Adam, FlatParameterRows, FlatParameters
from jacrec.training.passes import fused_unsupported_reason
from jacrec.training.stages.examples import gather_rows
from jacrec.training.stages.rebrac_update import LearnerParameters, PlainUpdate
from jacrec.training.stages.supervised import concat_tables
from jacrec.training.streams import BatchStream, derive_seed


class ReBRAC:
    """Actor, twin critic, their targets and optimisers; `update(batch, noise, move_actor)` is one step of the algorithm.

    A batch is a tensor of rows [s, a, s', â', r, 1−d] (B, 2d+2m+2), see `pack`.

    Args:
        fused: run an update as one call of compiled code (`jacrec.kernels.cpu.rebrac.fused`). Default: if possible, i.e. on a
            CPU with Numba, unless updates must be capturable.
        capturable: whether an update can be part of a CUDA graph; default: on a GPU.

    Raises:
        ValueError: `fused=True` where it is not supported; the message gives the reason.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        config: ReBRACConfig,
        seed: int = 0,
        device="cpu",
        dtype=torch.float32,
        *,
        fused: bool | None = None,
        capturable: bool | None = None,
    ):
        self.capturable = torch.device(device).type == "cuda" if capturable is None else capturable
        self.config, self.d, self.m = config, state_dim, action_dim

        def networks() -> tuple[Actor, TwinCritic]:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(seed, "rebrac", "networks"))
                actor = Actor(state_dim, action_dim, config.hidden, layer_norm=config.actor_layer_norm)
                critic = TwinCritic(state_dim, action_dim, config.hidden, layer_norm=config.critic_layer_norm)
            return actor.to(device, dtype), critic.to(device, dtype)

        self.actor, self.critic = networks()
        target_actor, target_critic = networks()
        self.flat_actor, self.flat_critic = FlatParameters(self.actor), FlatParameters(self.critic)
        self.flat_target_actor, self.flat_target_critic = FlatParameters(target_actor), FlatParameters(target_critic)
        self.actor_adam = Adam(self.flat_actor, config.actor_lr)
        self.critic_adam = Adam(self.flat_critic, config.critic_lr)
        reason = "updates must be capturable" if self.capturable else fused_unsupported_reason(self.flat_actor.value)
        if fused and reason:
            raise ValueError(f"fused: expected a supported configuration, got True although {reason}; omit it")
        self.fused = None
        if fused is not False and reason is None:
            from jacrec.kernels.cpu.rebrac.fused import FusedReBRAC, Rule, Trained

            def trained(mlp: MLP, target: FlatParameters, adam: Adam) -> Trained:
                flat, steps = adam.flat, adam.state()["step"]
                return Trained(mlp, flat.value, target.value, flat.gradient, *adam.moments(), steps)

            self.fused = FusedReBRAC(
                trained(self.actor.mlp, self.flat_target_actor, self.actor_adam),
                trained(self.critic.mlp, self.flat_target_critic, self.critic_adam),
                Rule(*(getattr(config, name) for name in Rule._fields)),
            )
        flats = LearnerParameters(self.flat_actor, self.flat_critic, self.flat_target_actor, self.flat_target_critic)
        adams = self.actor_adam, self.critic_adam
        self.plain = PlainUpdate(config, self.actor.mlp, self.critic.mlp, flats, adams, self.capturable)

    @torch.no_grad()
    def update(self, batch: Tensor, noise: Tensor, move_actor: bool) -> dict[str, Tensor]:
        """Update the critics, and with `move_actor` the actor and the targets. `noise` n (B, m) is standard normal.

        `batch` is overwritten. Returns scalars: critic_loss, q (mean of the critics on the data), and with `move_actor`
        actor_loss, bc (mean ‖π(s) − a‖²) and q_policy (mean min_i Q_i(s, π(s))).
        """
        if self.fused is not None:
            return self.fused.update(batch, noise, move_actor)
        return self.plain.update(batch, noise, move_actor)

    def state(self) -> dict[str, Tensor]:
        """The live tensors that further training depends on."""
        return {
            **{f"actor.{k}": v for k, v in self.actor_adam.state().items()},
            **{f"critic.{k}": v for k, v in self.critic_adam.state().items()},
            "target_actor": self.flat_target_actor.value,
            "target_critic": self.flat_target_critic.value,
        }


def pack(transitions: Transitions, reward_scale: float = 1.0) -> Tensor:
    """Rows [s, a, s', â', reward_scale · r, 1−d], float32 (n, 2d+2m+2), of `transitions.for_td()`.

    Raises:
        ValueError: no row is left.
    """
    usable = transitions.for_td()
    if not len(usable):
        raise ValueError(f"{transitions.info.name}: expected rows with a successor, got none of {len(transitions)}")
    columns = [torch.from_numpy(getattr(usable, name)) for name in ("state", "action", "next_state", "next_action")]
    alive = 1 - torch.from_numpy(usable.terminal).float()
    reward = torch.from_numpy(usable.reward).float() * reward_scale
    return torch.cat([*(c.float() for c in columns), reward.unsqueeze(-1), alive.unsqueeze(-1)], -1)


SCALE_STATES = 100_000
"""states over which the scale of the values is measured, at most"""


def discounted_returns(data: Transitions, discount: float) -> np.ndarray:
    """Σ_i γ^i r_{t+i} of every row t to the end of its episode in the data, (n,) float64; a time limit cuts it short."""
    follows = np.append(data.has_next_action[:-1] & (data.episode[:-1] == data.episode[1:]), False) & ~data.terminal
    returns, later = np.empty(len(data)), 0.0
    for t, (reward, on) in enumerate(zip(data.reward[::-1].tolist(), follows[::-1].tolist(), strict=True)):
        later = reward + discount * later if on else reward
        returns[t] = later
    return returns[::-1]


class ReBRACStage:
    """ReBRAC on a data set, as a stage of `jacrec.training.loop`; see `ReBRAC` for `fused` and `capturable`.

    Capturable updates are stored in two CUDA graphs, with and without the actor's update. `rows` is the result of `pack`, if
    another stage already has it on the device.
    """

    name = "rebrac"

    def __init__(
        self,
        data: Transitions,
        config: ReBRACConfig,
        seed: int,
        device="cpu",
        dtype=torch.float32,
        *,
        fused: bool | None = None,
        capturable: bool | None = None,
        rows: Tensor | None = None,
    ):
        self.config, self.updates = config, config.updates
        self.learner = ReBRAC(data.state_dim, data.action_dim, config, seed, device, dtype, fused=fused, capturable=capturable)
        rows = pack(data, config.reward_scale).to(device, dtype) if rows is None else rows
        # the closures below hold no reference to the stage, so its table is freed with it, without garbage collection
        learner, n, m = self.learner, len(rows), data.action_dim
        self.rows = rows
        self.data_return = float(discounted_returns(data, config.discount).mean()) * config.reward_scale

        def draw(generator: torch.Generator, block: int) -> tuple[Tensor, ...]:
            index = torch.randint(n, (block, config.batch_size), generator=generator)
            return index, torch.randn(block, config.batch_size, m, generator=generator, dtype=dtype)

        self.stream = BatchStream(seed, self.name, draw, device)

        def updating(move_actor: bool) -> Callable[..., dict[str, Tensor]]:
            def update(index: Tensor, noise: Tensor) -> dict[str, Tensor]:
                return learner.update(rows.index_select(0, index), noise, move_actor)

            return CapturedStep(update, lambda: learner.state().values()) if learner.capturable else update

        self.updates_of = {move_actor: updating(move_actor) for move_actor in (False, True)}

    def step(self, update: int) -> dict[str, Tensor]:
        """Perform update number `update`, counted from 0."""
        return self.updates_of[update % self.config.policy_freq == 0](*self.stream.at(update))

    @staticmethod
    def batched_step(stages: "Sequence[ReBRACStage]") -> "BatchedReBRAC":
        """The stages' step as one batched model's. They can no longer step alone."""
        return BatchedReBRAC(stages)

    def evaluate(self) -> dict[str, float]:
        """data_return, to be compared with q; nothing is held out: the policy is tested in the environment (`jacrec eval`)."""
        return {"data_return": self.data_return}

    def state(self) -> dict[str, Tensor]:
        """The live tensors to be stored in a checkpoint."""
        return self.learner.state()

    def value_scale(self) -> float | None:
        """mean |min Q(s, π(s))| over states of the data, evenly spaced, `SCALE_STATES` at most; None where that is not finite."""
        states = self.rows[:: -(-len(self.rows) // SCALE_STATES), : self.learner.actor.state_dim]
        with suppress(ValueError):
            return value_scale(self.learner.actor, self.learner.critic, states)
        return None

    def modules(self) -> dict[str, torch.nn.Module]:
        """The trained networks by file stem."""
        return {"actor": self.learner.actor, "critic": self.learner.critic}


class BatchedReBRAC:
    """Several learners of the same architecture as one batched model; a `jacrec.training.batched.BatchedStep`.

    Their parameter vectors become its rows. Fused learners hold addresses of their own: build them with fused=False.
    """

    def __init__(self, stages: Sequence[ReBRACStage]):
        learners = [stage.learner for stage in stages]
        if any(learner.fused is not None for learner in learners):
            raise ValueError(
                "fused: expected False to train seeds as one batched model, got fused learners; train those in processes"
            )
        first, self.config = learners[0], stages[0].config
        actors = FlatParameterRows([learner.flat_actor for learner in learners])
        critics = FlatParameterRows([learner.flat_critic for learner in learners])
        target_actors = FlatParameterRows([learner.flat_target_actor for learner in learners])
        target_critics = FlatParameterRows([learner.flat_target_critic for learner in learners])
        flats = LearnerParameters(actors, critics, target_actors, target_critics)
        adams = (
            Adam.from_rows([learner.actor_adam for learner in learners], actors),
            Adam.from_rows([learner.critic_adam for learner in learners], critics),
        )
        self.plain = PlainUpdate(self.config, first.actor.mlp, first.critic.mlp, flats, adams, masked=True)
        self.rows, self.start = concat_tables([stage.rows for stage in stages])

    def variant(self, update: int) -> bool:
        """Whether an update moves the actor."""
        return update % self.config.policy_freq == 0

    def schedule(self, update: int) -> tuple[float, ...]:
        """Nothing changes from update to update."""
        return ()

    def scalar_names(self, variant: bool) -> tuple[str, ...]:
        """Names of the scalars that an update returns."""
        return ("critic_loss", "q", *(("actor_loss", "bc", "q_policy") if variant else ()))

    def __call__(self, variant: bool, schedule: Tensor, *drawn: Tensor) -> dict[str, Tensor]:
        """Perform an update. `drawn` is index (S, B), relative to each one's own rows, and noise (S, B, m)."""
        index, noise = drawn
        return self.plain.update(gather_rows(self.rows, index + self.start), noise, variant)
