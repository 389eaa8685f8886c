"""ReBRAC (Tarasov et al. 2023), which gives π_ψ and Q_φ (section 3.3): the reference's updates, derivatives by hand.

    critic:  y = r + γ (1−d) [min_i Q̄_i(s', a') − β₂ ‖a' − â'‖²],   a' = clip(π̄(s') + clip(σ n, ±c), ±1)
             minimise Σ_i mean (Q_i(s, a) − y)²
    actor:   minimise mean [β₁ ‖π(s) − a‖² − λ min_i Q_i(s, π(s))],   λ = 1 / mean|min_i Q_i|, held constant

The actor and both targets move at every `policy_freq`-th critic update, the first included. As in the reference, the
actor's target is mixed with the actor from before its update, the critics' with the critics from after theirs.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from jacrec.data.transitions import Transitions
from jacrec.networks import MLP, Actor, TwinCritic
from jacrec.training.config import ReBRACConfig
from jacrec.training.flat import Adam, Flat
from jacrec.training.passes import MLPPass, why_not_fused
from jacrec.training.replay import Replay
from jacrec.training.streams import BatchStream, seed_of


class ReBRAC:
    """Actor, twin critic, their targets and optimisers; `update(batch, noise, move_actor)` is one step of the algorithm.

    A batch is a tensor of rows [s, a, s', â', r, 1−d] (B, 2d+2m+2), see `pack`.

    Args:
        fused: whether an update is one call of compiled code (`jacrec.kernels.cpu.rebrac`); None: where that is possible, on a
            CPU with Numba where an update need not be capturable.
        capturable: whether an update can be part of a CUDA graph; None: on a GPU.

    Raises:
        ValueError: `fused` is True where it is not possible; says why.
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
                torch.manual_seed(seed_of(seed, "rebrac", "networks"))
                actor = Actor(state_dim, action_dim, config.hidden, layer_norm=config.actor_layer_norm)
                critic = TwinCritic(state_dim, action_dim, config.hidden, layer_norm=config.critic_layer_norm)
            return actor.to(device, dtype), critic.to(device, dtype)

        self.actor, self.critic = networks()
        target_actor, target_critic = networks()
        self.flat_actor, self.flat_critic = Flat(self.actor), Flat(self.critic)
        self.flat_target_actor, self.flat_target_critic = Flat(target_actor), Flat(target_critic)
        heads = range(self.critic.critics)
        self.pi = MLPPass(self.actor.mlp, _inner(self.flat_actor))
        self.q = [MLPPass(self.critic.mlp, _inner(self.flat_critic), head) for head in heads]
        self.target_pi = MLPPass(target_actor.mlp)
        self.target_q = [MLPPass(target_critic.mlp, head=head) for head in heads]
        self.actor_adam = Adam(self.flat_actor, config.actor_lr)
        self.critic_adam = Adam(self.flat_critic, config.critic_lr)
        obstacle = "an update has to be capturable" if self.capturable else why_not_fused(self.flat_actor.value)
        if fused and obstacle:
            raise ValueError(f"fused: expected True where the fused update can serve, got it where {obstacle}; leave it out")
        self.fused = None
        if fused is not False and obstacle is None:
            from jacrec.kernels.cpu.rebrac import FusedReBRAC, Rule, Trained

            def trained(mlp: MLP, target: Flat, adam: Adam) -> Trained:
                flat, steps = adam.flat, adam.state()["step"]
                return Trained(mlp, flat.value, target.value, flat.gradient, *adam.moments(), steps)

            self.fused = FusedReBRAC(
                trained(self.actor.mlp, self.flat_target_actor, self.actor_adam),
                trained(self.critic.mlp, self.flat_target_critic, self.critic_adam),
                Rule(*(getattr(config, name) for name in Rule._fields)),
            )

    @torch.no_grad()
    def update(self, batch: Tensor, noise: Tensor, move_actor: bool) -> dict[str, Tensor]:
        """One critic update, and one of the actor and the targets if `move_actor`. `noise` n (B, m) is standard normal.

        `batch` is overwritten. Returns scalars: critic_loss, q (mean of the critics on the data), and with `move_actor`
        actor_loss, bc (mean ‖π(s) − a‖²) and q_policy (mean min_i Q_i(s, π(s))).
        """
        if self.fused is not None:
            return self.fused.update(batch, noise, move_actor)
        scalars = self._update_critic(batch, noise)
        if move_actor:
            scalars |= self._update_actor(batch)
        return scalars

    def _update_critic(self, batch: Tensor, noise: Tensor) -> dict[str, Tensor]:
        c, x = self.config, self.d + self.m
        s_a, next_s_a = batch[:, :x], batch[:, x : 2 * x]
        reward, alive = batch[:, 2 * x : 2 * x + 1], batch[:, 2 * x + 1 :]
        next_state, data_action = next_s_a[:, : self.d], next_s_a[:, self.d :]
        jitter = (noise * c.policy_noise).clamp_(-c.noise_clip, c.noise_clip)
        action = self.target_pi.value(next_state).add_(jitter).clamp_(-1, 1)
        penalty = (action - data_action).square_().sum(-1, keepdim=True)
        data_action.copy_(action)  # the rows are now [s', a']
        next_q = torch.stack([q.value(next_s_a) for q in self.target_q]).amin(0).sub_(penalty, alpha=c.critic_bc_coef)
        y = torch.addcmul(reward, alive, next_q, value=c.discount)
        loss, mean_q = y.new_zeros(()), y.new_zeros(())
        for q in self.q:
            value, tape = q.record(s_a)
            mean_q += value.mean()
            error = value.sub_(y)
            loss += error.square().mean()
            q.pull(tape, error.mul_(2 / len(batch)))
        self.critic_adam.step()
        return {"critic_loss": loss, "q": mean_q / len(self.q)}

    def _update_actor(self, batch: Tensor) -> dict[str, Tensor]:
        c, rows = self.config, len(batch)
        s_a = batch[:, : self.d + self.m].clone()
        data_action = batch[:, self.d : self.d + self.m]
        action, tape = self.pi.record(s_a[:, : self.d])
        s_a[:, self.d :] = action
        values, tapes = zip(*(q.record(s_a) for q in self.q), strict=True)
        smallest, which = torch.cat(values, -1).min(-1)
        scale = 1 / smallest.abs().mean() if c.normalize_q else smallest.new_ones(())
        away = action - data_action
        action_bar = away * (2 * c.actor_bc_coef / rows)
        for head, (q, q_tape) in enumerate(zip(self.q, tapes, strict=True)):
            # only the rows in which this critic is the smaller one carry a cotangent
            mine = which == head
            if self.capturable:  # how many they are the host must not ask
                q_bar = torch.where(mine, -scale / rows, 0.0).unsqueeze(-1)
                s_a_bar = q.pull(q_tape, q_bar, parameters=False, inputs=True)
                assert s_a_bar is not None
                action_bar += s_a_bar[:, self.d :]
                continue
            index = mine.nonzero().squeeze(-1)
            q_bar = (-scale / rows).expand(len(index), 1)
            s_a_bar = q.pull(q_tape.rows(index), q_bar, parameters=False, inputs=True)
            assert s_a_bar is not None
            action_bar.index_add_(0, index, s_a_bar[:, self.d :])
        self.pi.pull(tape, action_bar)
        self.flat_target_actor.move_towards(self.flat_actor, c.tau)  # before the actor moves, as the reference does
        self.actor_adam.step()
        self.flat_target_critic.move_towards(self.flat_critic, c.tau)
        bc, q_policy = away.square().sum(-1).mean(), smallest.mean()
        return {"actor_loss": c.actor_bc_coef * bc - scale * q_policy, "bc": bc, "q_policy": q_policy}

    def state(self) -> dict[str, Tensor]:
        """The live tensors that the rest of the training depends on."""
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


class ReBRACStage:
    """ReBRAC on a data set, as a stage of `jacrec.training.loop`; see `ReBRAC` for `fused` and `capturable`.

    Capturable updates are held by two CUDA graphs, with and without the actor's.
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
    ):
        self.config, self.updates = config, config.updates
        self.learner = ReBRAC(data.state_dim, data.action_dim, config, seed, device, dtype, fused=fused,
                              capturable=capturable)  # fmt: skip
        self.rows = pack(data, config.reward_scale).to(device, dtype)

        def draw(generator: torch.Generator, block: int) -> tuple[Tensor, ...]:
            index = torch.randint(len(self.rows), (block, config.batch_size), generator=generator)
            return index, torch.randn(block, config.batch_size, data.action_dim, generator=generator, dtype=dtype)

        self.stream = BatchStream(seed, self.name, draw, device)

        def updating(move_actor: bool) -> Callable[..., dict[str, Tensor]]:
            def update(index: Tensor, noise: Tensor) -> dict[str, Tensor]:
                return self.learner.update(self.rows.index_select(0, index), noise, move_actor)

            return Replay(update, lambda: self.state().values()) if self.learner.capturable else update

        self.updates_of = {move_actor: updating(move_actor) for move_actor in (False, True)}

    def step(self, update: int) -> dict[str, Tensor]:
        """Update number `update`, counted from 0."""
        return self.updates_of[update % self.config.policy_freq == 0](*self.stream.at(update))

    def evaluate(self) -> dict[str, float]:
        """Nothing is held out: the policy's test is the environment (`jacrec eval`)."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """The live tensors that a checkpoint holds."""
        return self.learner.state()

    def modules(self) -> dict[str, torch.nn.Module]:
        """The finished networks by file name."""
        return {"actor": self.learner.actor, "critic": self.learner.critic}


def _inner(flat: Flat) -> dict[str, Tensor]:
    return {name.removeprefix("mlp."): gradient for name, gradient in flat.gradient_of.items()}
