"""ReBRAC as in the reference, in plain torch with autograd: the oracle, and the baseline, of the hand-written updates.

Transcribed from the losses and the order of updates in `algorithms/offline/rebrac.py` of CORL, the authors' single-file JAX
implementation: `update_critic`, then, if the actor moves, `update_actor` with the updated critics. Both targets are updated
inside `update_actor`, the actor's with the parameters at which its gradient was taken.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from jacrec.training.passes import fused_unsupported_reason
from jacrec.training.stages.rebrac import ReBRAC

UNSUPPORTED = fused_unsupported_reason(torch.zeros(1))
needs_fused = pytest.mark.skipif(UNSUPPORTED is not None, reason=str(UNSUPPORTED))
FUSED = [pytest.param(False, id="plain"), pytest.param(True, id="fused", marks=needs_fused)]
"""values of `fused` for the tests"""


class PlainActor(nn.Module):
    def __init__(self, d, m, width, layer_norm):
        super().__init__()
        self.linears = nn.ModuleList(
            [nn.Linear(d, width), nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, m)]
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(3)) if layer_norm else [nn.Identity()] * 3

    def body(self, x):
        for linear, norm in zip(self.linears[:-1], self.norms, strict=True):
            x = norm(functional.relu(linear(x)))
        return self.linears[-1](x)

    def forward(self, state):
        return torch.tanh(self.body(state))


class PlainCritic(PlainActor):
    def __init__(self, d, m, width, layer_norm):
        super().__init__(d + m, 1, width, layer_norm)

    def forward(self, state, action):
        return self.body(torch.cat([state, action], dim=1))[:, 0]


class PlainReBRAC:
    """The reference's two updates, starting from a learner's networks, in the learner's precision or in `dtype`."""

    def __init__(self, learner: ReBRAC, fused: bool = False, dtype: torch.dtype | None = None):
        c, like = learner.config, learner.flat_actor.value.to(dtype)
        self.c, width = c, c.hidden[0]
        self.actor = PlainActor(learner.d, learner.m, width, c.actor_layer_norm).to(like)
        self.critics = nn.ModuleList(PlainCritic(learner.d, learner.m, width, c.critic_layer_norm) for _ in range(2)).to(like)
        plain_weights(learner.actor.mlp, self.actor, None)
        for head, critic in enumerate(self.critics):
            plain_weights(learner.critic.mlp, critic, head)
        self.target_actor, self.target_critics = copy.deepcopy(self.actor), copy.deepcopy(self.critics)
        self.actor_optimiser = torch.optim.Adam(self.actor.parameters(), lr=c.actor_lr, fused=fused)
        self.critic_optimiser = torch.optim.Adam(self.critics.parameters(), lr=c.critic_lr, fused=fused)

    def update(self, s, a, r, s2, a2, done, noise, move_actor):
        """(B, d), (B, m), (B,), (B, d), (B, m), (B,), (B, m) -> the losses and the other metrics."""
        c = self.c
        with torch.no_grad():
            n = (noise * c.policy_noise).clamp(-c.noise_clip, c.noise_clip)
            next_action = (self.target_actor(s2) + n).clamp(-1, 1)
            penalty = ((next_action - a2) ** 2).sum(-1)
            next_q = torch.minimum(*(q(s2, next_action) for q in self.target_critics)) - c.critic_bc_coef * penalty
            target = r + c.discount * (1 - done) * next_q
        values = [q(s, a) for q in self.critics]
        loss = sum(functional.mse_loss(value, target) for value in values)
        self.critic_optimiser.zero_grad()
        loss.backward()
        self.critic_optimiser.step()
        scalars = {"critic_loss": loss.detach(), "q": torch.stack(values).detach().mean()}
        if not move_actor:
            return scalars
        pi = self.actor(s)
        q = torch.minimum(*(critic(s, pi) for critic in self.critics))
        lam = 1 / q.abs().mean().detach() if c.normalize_q else 1.0
        bc = ((pi - a) ** 2).sum(-1)
        actor_loss = (c.actor_bc_coef * bc - lam * q).mean()
        self.actor_optimiser.zero_grad()
        actor_loss.backward()
        self.follow(self.actor, self.target_actor)  # before the actor's step, as in the reference
        self.actor_optimiser.step()
        self.follow(self.critics, self.target_critics)
        return scalars | {"actor_loss": actor_loss.detach(), "bc": bc.detach().mean(), "q_policy": q.detach().mean()}

    @torch.no_grad()
    def follow(self, online, target):
        for p, p_bar in zip(online.parameters(), target.parameters(), strict=True):
            p_bar.mul_(1 - self.c.tau).add_(self.c.tau * p)


@torch.no_grad()
def plain_weights(mlp, plain, head):
    """Copy an MLP, or one head of a stack, into plain layers."""
    for layers, plain_layers in ((mlp.layers, plain.linears), (mlp.norms, plain.norms)):
        for layer, plain_layer in zip(layers, plain_layers, strict=False):
            plain_layer.weight.copy_(layer.weight if head is None else layer.weight[head])
            plain_layer.bias.copy_(layer.bias if head is None else layer.bias[head])


def largest_difference(mlp, plain, head=None) -> float:
    """Largest difference between the parameters of an MLP, or one head of a stack, and the plain layers."""
    worst = 0.0
    for layers, plain_layers in ((mlp.layers, plain.linears), (mlp.norms, plain.norms)):
        for layer, plain_layer in zip(layers, plain_layers, strict=False):
            for name in ("weight", "bias"):
                ours, theirs = getattr(layer, name), getattr(plain_layer, name)
                worst = max(worst, ((ours if head is None else ours[head]) - theirs).abs().max().item())
    return worst
