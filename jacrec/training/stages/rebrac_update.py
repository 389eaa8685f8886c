"""ReBRAC's update in plain torch with hand-written derivatives, for one learner or for several as one batched model."""

from typing import NamedTuple

import torch
from torch import Tensor

from jacrec.models.networks import MLP
from jacrec.training.config import ReBRACConfig
from jacrec.training.flat import Adam, FlatParameterRows, FlatParameters
from jacrec.training.passes import MLPPass


class LearnerParameters(NamedTuple):
    """Parameters of a learner, or of S learners as rows."""

    actor: FlatParameters | FlatParameterRows
    critic: FlatParameters | FlatParameterRows
    target_actor: FlatParameters | FlatParameterRows
    target_critic: FlatParameters | FlatParameterRows


class PlainUpdate:
    """`update(batch, noise, move_actor)` as in `jacrec.training.stages.rebrac.ReBRAC.update`.

    With S learners, batch and noise have a leading axis S, (S, B, ·), and every returned scalar is (S,).

    Args:
        actor, critic: networks of the architecture that `flats` holds.
        masked: select a critic's rows by masks instead of indices, without synchronising with the device.
    """

    def __init__(
        self, config: ReBRACConfig, actor: MLP, critic: MLP, flats: LearnerParameters, adams: tuple[Adam, Adam], masked: bool
    ):
        self.config, self.d, self.m = config, actor.in_dim, actor.out_dim
        self.flats, self.masked = flats, masked
        self.actor_adam, self.critic_adam = adams
        heads = range(critic.stack or 1)

        def passes(mlp: MLP, flat: FlatParameters | FlatParameterRows, moving: bool, head: int | None = None) -> MLPPass:
            return MLPPass(mlp, _inner(flat.gradient_of) if moving else None, head, _inner(flat.value_of))

        self.pi = passes(actor, flats.actor, True)
        self.q = [passes(critic, flats.critic, True, head) for head in heads]
        self.target_pi = passes(actor, flats.target_actor, False)
        self.target_q = [passes(critic, flats.target_critic, False, head) for head in heads]

    @torch.no_grad()
    def update(self, batch: Tensor, noise: Tensor, move_actor: bool) -> dict[str, Tensor]:
        """See `jacrec.training.stages.rebrac.ReBRAC.update`."""
        scalars = self._update_critic(batch, noise)
        if move_actor:
            scalars |= self._update_actor(batch)
        return scalars

    def _update_critic(self, batch: Tensor, noise: Tensor) -> dict[str, Tensor]:
        c, x = self.config, self.d + self.m
        s_a, next_s_a = batch[..., :x], batch[..., x : 2 * x]
        reward, alive = batch[..., 2 * x : 2 * x + 1], batch[..., 2 * x + 1 :]
        next_state, data_action = next_s_a[..., : self.d], next_s_a[..., self.d :]
        jitter = (noise * c.policy_noise).clamp_(-c.noise_clip, c.noise_clip)
        action = self.target_pi.value(next_state).add_(jitter).clamp_(-1, 1)
        penalty = (action - data_action).square_().sum(-1, keepdim=True)
        data_action.copy_(action)  # the rows are now [s', a']
        next_q = torch.stack([q.value(next_s_a) for q in self.target_q]).amin(0).sub_(penalty, alpha=c.critic_bc_coef)
        y = torch.addcmul(reward, alive, next_q, value=c.discount)
        loss, mean_q = y.new_zeros(y.shape[:-2]), y.new_zeros(y.shape[:-2])
        for q in self.q:
            value, tape = q.record(s_a)
            mean_q += value.mean((-2, -1))
            error = value.sub_(y)
            loss += error.square().mean((-2, -1))
            q.pull(tape, error.mul_(2 / batch.shape[-2]))
        self.critic_adam.step()
        return {"critic_loss": loss, "q": mean_q / len(self.q)}

    def _update_actor(self, batch: Tensor) -> dict[str, Tensor]:
        c, rows = self.config, batch.shape[-2]
        s_a = batch[..., : self.d + self.m].clone()
        data_action = batch[..., self.d : self.d + self.m]
        action, tape = self.pi.record(s_a[..., : self.d])
        s_a[..., self.d :] = action
        values, tapes = zip(*(q.record(s_a) for q in self.q), strict=True)
        smallest, which = torch.cat(values, -1).min(-1)
        scale = 1 / smallest.abs().mean(-1) if c.normalize_q else smallest.new_ones(smallest.shape[:-1])
        deviation = action - data_action
        action_bar = deviation * (2 * c.actor_bc_coef / rows)
        for head, (q, q_tape) in enumerate(zip(self.q, tapes, strict=True)):
            # only rows in which this critic is the smaller one have a cotangent
            selected = which == head
            if self.masked:  # their number would require a synchronisation
                q_bar = torch.where(selected, (-scale / rows).unsqueeze(-1), 0.0).unsqueeze(-1)
                s_a_bar = q.pull(q_tape, q_bar, parameters=False, inputs=True)
                assert s_a_bar is not None
                action_bar += s_a_bar[..., self.d :]
                continue
            index = selected.nonzero().squeeze(-1)
            q_bar = (-scale / rows).expand(len(index), 1)
            s_a_bar = q.pull(q_tape.rows(index), q_bar, parameters=False, inputs=True)
            assert s_a_bar is not None
            action_bar.index_add_(0, index, s_a_bar[:, self.d :])
        self.pi.pull(tape, action_bar)
        self.flats.target_actor.move_towards(self.flats.actor, c.tau)  # before the actor's step, as in the reference
        self.actor_adam.step()
        self.flats.target_critic.move_towards(self.flats.critic, c.tau)
        bc, q_policy = deviation.square().sum(-1).mean(-1), smallest.mean(-1)
        return {"actor_loss": c.actor_bc_coef * bc - scale * q_policy, "bc": bc, "q_policy": q_policy}


def _inner(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("mlp."): tensor for name, tensor in tensors.items()}
