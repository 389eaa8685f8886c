"""The decoupled gradient: each imagined action is improved by a local value, without differentiation through time.

The states s̃_0 … s̃_H are imagined as in (2) and then held fixed. At each of them the policy ascends a value of its own action,

    S(ψ) = Σ_{j≤H} c_j A_j(s̃_j, π_ψ(s̃_j)),      ∇S = Σ_j c_j ∂A_j/∂a (s̃_j, ã_j) Π_ψ(j)

    "critic":    A_j(s, a) = Q(s, a)
    "one-step":  A_j(s, a) = r(s, a) + γ V(f_θ(s, a, ε_j)),  V(s) = Q(s, π(s)) with π held fixed;  A_H = Q
                 ∂A_j/∂a = r_a + γ F_aᵀ V_s(s̃_{j+1}),  V_s = Q_s + Π_sᵀ Q_a

with c_j proportional to γ^j, or uniform, and Σ_j c_j = 1. There is no recursion: all states are evaluated in one batch, by
policy, critic, reward and (one-step) dynamics. For H = 0 it is ascent on the critic at s_t, as for the return.

Cost compared with the adjoint form, per particle and in forward or backward evaluations of a network. The adjoint form takes H
forward and H backward of the dynamics, H of each of the reward, one of each of the critic, and of the policy H + 1 forward, one
backward for states and one for parameters. "critic" takes none of the reward and no backward ones of dynamics and states, but
H more of each of the critic. "one-step" takes the backward ones of the dynamics and evaluates them a second time for it, in one
batch; only the rollout is sequential.

After Flow Q-Learning (Park, Li, Levine 2025), which trains a policy without gradients through the time of a sampler; here it
is the time of the imagined rollout.
"""

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

from jacrec.control.config import MPCConfig
from jacrec.engine.dispatch import fused_chain, kernels
from jacrec.engine.jacobians import chain
from jacrec.engine.jacobians.dynamics import DynamicsPass, dynamics_pass
from jacrec.engine.jacobians.policy import policy_pass
from jacrec.engine.jacobians.values import value_and_gradient
from jacrec.engine.methods import Method
from jacrec.engine.problem import Problem
from jacrec.engine.shapes import plain_torch, problem
from jacrec.engine.types import PolicyGradient
from jacrec.experimental.steps import PlainStep, expect_one_transition
from jacrec.models.world import World, apply_policy
from jacrec.util.errors import expect_one_of

LOCAL = ("critic", "one-step")
WEIGHTS = ("discounted", "uniform")


@dataclass(frozen=True)
class Decoupled(PlainStep):
    """Ascend S instead of Ĵ: `MPC(..., update=Decoupled())`. Another objective, and so not a method for the gradient of Ĵ.

    The `value` of its updates is S, whose states move with ψ from one update to the next; it is not the return.
    """

    local: str = "critic"
    """what an action is valued by: "critic" or "one-step\""""
    weights: str = "discounted"
    """weights of the imagined steps: "discounted" (γ^j) or "uniform", normalised to sum 1"""
    kernel: str = "auto"
    """of the transitions: "auto" (compiled on a CPU where they can serve, else plain), "plain" or "fused\""""

    def __post_init__(self):
        expect_one_of("Decoupled.local", self.local, LOCAL)
        expect_one_of("Decoupled.weights", self.weights, WEIGHTS)
        expect_one_of("Decoupled.kernel", self.kernel, ("auto", "plain", "fused"))

    def check(self, config: MPCConfig, world: World | None = None) -> None:
        """ValueError for a chosen method, since S has one gradient of its own, or for dynamics without single transition."""
        if config.method != "auto":
            raise ValueError(
                f'method: expected "auto" with objective="decoupled-{self.local}", whose gradient is computed in one way, got '
                f'{config.method!r}; the methods compute that of objective="return"'
            )
        if config.anchored or (world is not None and world.anchor is not None):
            raise ValueError("anchor: expected none with a decoupled objective, which has no anchored form, got one")
        expect_one_transition(world, "Decoupled")

    @torch.no_grad()
    def estimate(self, p: Problem, method: Method | None = None) -> PolicyGradient:
        """S and ∇S."""
        if p.world.anchor is not None:
            raise ValueError("anchor: expected none with a decoupled objective, which has no anchored form, got one")
        passes = dynamics_pass(p.world.dynamics, chain=self._chain(p))
        states = imagined_states(p, passes)
        pi = policy_pass(p.policy, states)
        value, w = self._local_gradients(p, passes, states, pi.action, pi.pull_state)
        gradient = pi.pull_parameters(w)
        if not p.batched:
            gradient = {name: g / p.N for name, g in gradient.items()}
        value = value.squeeze(0) if p.single else value
        return PolicyGradient(value, {name: gradient[name] for name, _ in p.policy.named_parameters()})

    def _local_gradients(self, p: Problem, passes: DynamicsPass, states: Tensor, action: Tensor, pull_state):
        """S (N,), and c_j ∂A_j/∂a averaged over the particles, (N, R, m), at states (N, R, d) as `imagined_states` has them."""
        world, later = p.world, states[:, 1:]
        c = self._weights(p, states)  # (H+1,)
        at = states.flatten(0, 1), action.flatten(0, 1)
        Q, Q_s, Q_a = (x.unflatten(0, states.shape[:2]) for x in value_and_gradient("critic", world.critic, *at))
        share = torch.cat([c[:1], c[1:].repeat_interleave(p.M) / p.M])  # (R,)
        if self.local == "critic" or p.H == 0:
            return (share * Q).sum(1), share.unsqueeze(-1) * Q_a
        V_s = (Q_s + pull_state(Q_a))[:, 1:]
        before = torch.cat([states[:, :1].expand(-1, p.M, -1), later[:, : -p.M]], 1)  # s̃_0 … s̃_{H-1}, M rows each
        acting = torch.cat([action[:, :1].expand(-1, p.M, -1), action[:, 1 : -p.M]], 1)
        flat = before.flatten(0, 1), acting.flatten(0, 1)
        _, pull = passes.record(*flat, p.noise.transpose(1, 2).flatten(0, 2))
        _, v_a = pull(V_s.flatten(0, 1))
        r, _, r_a = value_and_gradient("reward", world.reward, *flat)
        per_row = c[:-1].repeat_interleave(p.M) / p.M  # (H·M,)
        A = (r.unflatten(0, (p.N, -1)) + world.discount * Q[:, 1:]) * per_row
        A_a = (r_a + world.discount * v_a).unflatten(0, (p.N, -1)) * per_row.unsqueeze(-1)
        last = share[-p.M :]
        value = A.sum(1) + (last * Q[:, -p.M :]).sum(1)
        first = A_a[:, : p.M].sum(1, keepdim=True)
        return value, torch.cat([first, A_a[:, p.M :], last.unsqueeze(-1) * Q_a[:, -p.M :]], 1)

    def _weights(self, p: Problem, like: Tensor) -> Tensor:
        c = torch.tensor([float(p.world.discount) ** j for j in range(p.H + 1)], dtype=like.dtype, device=like.device)
        return c / c.sum() if self.weights == "discounted" else torch.ones_like(c) / len(c)

    def _chain(self, p: Problem) -> ModuleType:
        """The module that computes the transitions."""
        if self.kernel == "plain":
            return chain
        if self.kernel == "fused":
            return kernels(p, "forward").chain
        return fused_chain(p) or chain


def imagined_states(p: Problem, passes: DynamicsPass) -> Tensor:
    """The states of (2), (N, 1 + H·M, d): s̃_0 once, then M rows of s̃_1, … M of s̃_H. Nothing is stored for derivatives."""
    s = p.state.unsqueeze(1)
    states = [s]
    for j in range(p.H):
        a = apply_policy(p.policy, None, s).expand(-1, p.M, -1)
        flat = s.expand(-1, p.M, -1).flatten(0, 1), a.flatten(0, 1), p.noise[:, :, j].flatten(0, 1)
        s = passes.step(*flat).unflatten(0, (p.N, p.M))
        states.append(s)
    return torch.cat(states, 1)


@plain_torch
def decoupled_gradient(
    policy: nn.Module,
    world: World,
    state: Tensor,
    noise: Tensor,
    *,
    local: str = "critic",
    weights: str = "discounted",
    kernel: str = "auto",
) -> PolicyGradient:
    """S and ∇S of the decoupled objective (`jacrec.experimental.decoupled`).

    Args:
        policy, world, state, noise: as in `policy_gradient`; noise decides M particles and horizon H >= 0.
        local: "critic" (∂Q/∂a) or "one-step" (r_a + γ F_aᵀ V_s).
        weights: of the steps, "discounted" or "uniform"; normalised.
        kernel: of the transitions, "auto", "plain" or "fused".

    Returns:
        `PolicyGradient` as from `policy_gradient`, with S as its value.

    Raises:
        ValueError: wrong shape, dtype, device, non-finite input, or a kernel that cannot serve.
    """
    return Decoupled(local, weights, kernel).estimate(problem(policy, world, state, noise))
