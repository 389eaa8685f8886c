"""The contestants of the gradient benchmark: jacrec's methods and torch's; those of JAX are in `peers_jax`.

A contestant prepares a `Case` and returns an `Entry`, or raises `Unavailable` with the reason.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import peers_jax
import torch
from problems import Case, Entry, Unavailable
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from jacrec import Adjoint, Auto, Autograd, Forward, MultiStepDynamics, policy_gradient
from jacrec.engine.methods import Method
from jacrec.engine.types import PolicyGradient


@dataclass(frozen=True)
class Contestant:
    """A way to compute the gradient."""

    name: str
    what: str
    prepare: Callable[[Case], Entry]
    ours: bool = False
    default_on: tuple[str, ...] = ("cpu", "cuda")
    """devices on which it takes part by default"""
    dissected: bool = False
    """whether it uses the functions timed by `phases`"""


def imagined_objective(case: Case, dynamics: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """Ĵ of section 4.2 in plain torch: the mean return over M particles."""
    policy, world, state, noise = case.arguments
    M, H = noise.shape[:2]
    s, total = state.expand(M, -1), state.new_zeros(M)
    if isinstance(case.dynamics, MultiStepDynamics):
        states = case.dynamics.imagine(policy, s.unsqueeze(0), noise.unsqueeze(0)).squeeze(0)  # (M, H+1, d)
        actions = policy(states)
        if H:
            weights = world.discount ** torch.arange(H, dtype=s.dtype, device=s.device)
            total = world.reward(states[:, :H], actions[:, :H]) @ weights
        return (total + world.discount**H * world.critic(states[:, H], actions[:, H])).mean()
    for j in range(H):
        a = policy(s)
        total = total + world.discount**j * world.reward(s, a)
        s = dynamics(s, a, noise[:, j])
    return (total + world.discount**H * world.critic(s, policy(s))).mean()


def differentiate(case: Case, objective: Callable[[], Tensor]) -> Callable[[], PolicyGradient]:
    """Reverse mode through `objective`, with a new graph for each call."""
    names, parameters = zip(*case.policy.named_parameters(), strict=True)

    def gradient() -> PolicyGradient:
        value = objective()
        return PolicyGradient(value.detach(), dict(zip(names, torch.autograd.grad(value, parameters), strict=True)))

    return gradient


def torch_autograd(case: Case) -> Entry:
    """Reverse mode through a rollout in plain torch."""
    return Entry(differentiate(case, lambda: imagined_objective(case, case.dynamics)))


def torch_checkpoint(case: Case) -> Entry:
    """Reverse mode with every transition checkpointed: its chain is recomputed in the backward pass."""
    if isinstance(case.dynamics, MultiStepDynamics):
        raise Unavailable("a multi-step model has no single transition")

    def dynamics(s: Tensor, a: Tensor, noise: Tensor) -> Tensor:
        return checkpoint(case.dynamics, s, a, noise, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore

    return Entry(differentiate(case, lambda: imagined_objective(case, dynamics)))


def torch_compile(case: Case) -> Entry:
    """The objective compiled by torch.compile, forward and backward, with all H·K network calls unrolled; CUDA graphs on a GPU."""
    torch.compiler.reset()
    mode = "reduce-overhead" if case.state.is_cuda else "default"
    compiled = torch.compile(lambda: imagined_objective(case, case.dynamics), mode=mode, dynamic=False, fullgraph=True)
    gradient = differentiate(case, compiled)
    started = time.perf_counter()
    gradient()
    return Entry(gradient, ready_seconds=time.perf_counter() - started)


def torch_jacfwd(case: Case) -> Entry:
    """Plain forward mode: dense F_s, F_a, Π_s by torch.func.jacfwd, with d+m tangents in every step.

    The d·P and m·P sensitivities as printed would take gigabytes, so the recursion uses their factors and ends with one
    product with Π_ψ by autograd.
    """
    policy, world, state, noise = case.arguments
    dynamics = case.dynamics
    if isinstance(dynamics, MultiStepDynamics):
        raise Unavailable("a multi-step model has no single transition")
    M, H = noise.shape[:2]
    d, m = case.size.d, case.size.m

    unit = torch.eye(m).to(state)

    # derivatives with respect to a shift shared by all particles: one vmap over d+m directions, none over particles
    def step_jacobians(s: Tensor, a: Tensor, z: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        def shifted(ds: Tensor, da: Tensor) -> tuple[Tensor, Tensor]:
            next_state = dynamics(s + ds, a + da, z)
            return next_state, next_state

        return torch.func.jacfwd(shifted, argnums=(0, 1), has_aux=True)(s.new_zeros(d), s.new_zeros(m))

    def policy_jacobian(s: Tensor) -> tuple[Tensor, Tensor]:
        def shifted(ds: Tensor) -> tuple[Tensor, Tensor]:
            action = policy(s + ds)
            return action, action

        return torch.func.jacfwd(shifted, has_aux=True)(s.new_zeros(d))

    def slopes(function: Callable[[Tensor, Tensor], Tensor], s: Tensor, a: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        def total(s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
            values = function(s, a)
            return values.sum(), values

        return torch.func.grad(total, argnums=(0, 1), has_aux=True)(s, a)

    def gradient() -> PolicyGradient:
        s = state.expand(M, d).contiguous()
        C = s.new_zeros(M, d, 0)
        w, value, visited = s.new_zeros(M, 0), s.new_zeros(M), []
        for j in range(H + 1):
            Pi_s, a = policy_jacobian(s)
            (v_s, v_a), v = slopes(world.reward if j < H else world.critic, s, a)
            visited.append(s)
            value = value + world.discount**j * v
            E = torch.cat([Pi_s @ C, unit.expand(M, m, m)], -1)  # (10)
            C = torch.cat([C, C.new_zeros(M, d, m)], -1)
            w = torch.cat([w, w.new_zeros(M, m)], -1)
            w = w + world.discount**j * ((v_s.unsqueeze(1) @ C) + (v_a.unsqueeze(1) @ E)).squeeze(1)
            if j < H:
                (F_s, F_a), s = step_jacobians(s, a, noise[:, j])
                C = F_s @ C + F_a @ E  # (13)
        weights = w.detach().unflatten(-1, (H + 1, m)) / M
        names, parameters = zip(*policy.named_parameters(), strict=True)
        total = (policy(torch.stack(visited, 1).detach()) * weights).sum()
        return PolicyGradient(value.detach().mean(), dict(zip(names, torch.autograd.grad(total, parameters), strict=True)))

    return Entry(gradient)


def method(make: Callable[[], Method]) -> Callable[[Case], Entry]:
    """One of jacrec's methods, called through the public interface."""

    def prepare(case: Case) -> Entry:
        try:
            chosen = make()
        except TypeError as error:
            raise Unavailable(f"this version has no such method ({error})") from error
        started = time.perf_counter()
        try:
            policy_gradient(*case.arguments, method=chosen)
        except ValueError as error:
            raise Unavailable(str(error)) from error
        return Entry(lambda: policy_gradient(*case.arguments, method=chosen), ready_seconds=time.perf_counter() - started)

    return prepare


def _fused(form: Callable[..., Method], **options: object) -> Callable[[Case], Entry]:
    return method(lambda: form(kernel="fused", **options))


CONTESTANTS = {
    c.name: c
    for c in (
        Contestant("torch autograd", "reverse mode through the plain rollout, eager", torch_autograd),
        Contestant("torch checkpoint", "the same, each transition checkpointed", torch_checkpoint),
        Contestant("torch compile", "torch.compile of it, unrolled", torch_compile, default_on=()),
        Contestant("torch.func jacfwd", "forward mode, dense Jacobians with d+m tangents", torch_jacfwd),
        Contestant("jax scan", "jit(value_and_grad), lax.scan over H and K", peers_jax.scan),
        Contestant("jax unrolled", "jit(value_and_grad), loops unrolled", peers_jax.unrolled, default_on=()),
        Contestant("autograd", "jacrec Autograd()", method(Autograd), ours=True, default_on=()),
        Contestant("forward", "jacrec Forward()", method(Forward), ours=True, dissected=True),
        Contestant("adjoint", "jacrec Adjoint()", method(Adjoint), ours=True, dissected=True),
        Contestant(
            "adjoint recomputed",
            "jacrec Adjoint(recompute=True)",
            method(lambda: Adjoint(recompute=True)),
            ours=True,
            dissected=True,
        ),
        Contestant("forward fused", 'jacrec Forward(kernel="fused")', _fused(Forward), ours=True),
        Contestant("adjoint fused", 'jacrec Adjoint(kernel="fused")', _fused(Adjoint), ours=True),
        Contestant(
            "adjoint recomputed fused",
            'jacrec Adjoint(recompute=True, kernel="fused")',
            _fused(Adjoint, recompute=True),
            ours=True,
            default_on=("cuda",),
        ),
        Contestant("auto", "jacrec Auto()", method(Auto), ours=True),
    )
}
EAGER = ("torch autograd", "autograd")
"""contestants with eager reverse mode"""
