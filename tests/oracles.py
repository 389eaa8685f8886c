"""The oracle, written once: the imagined return of one noise sequence in the plainest torch, differentiated by autograd."""

import copy
from dataclasses import replace

import torch

from jacrec import Autograd, BatchedPolicy, World, policy_gradient


def one_return(policy, world, state, noise):
    """L of (3) for one state (d,) and one noise sequence (H, *noise_shape); policy: (d,) -> (m,)."""
    total, s = 0.0, state
    for j in range(noise.shape[0]):
        a = policy(s)
        total = total + world.discount**j * (world.reward(s, a) - penalty(world, s, a))
        s = world.dynamics(s, a, noise[j])
    return total + world.discount ** noise.shape[0] * last_term(policy, world, s)


def last_term(policy, world, state):
    """Q of the policy's action, or of the anchor's, less the penalty; state (d,)."""
    if world.anchor is not None and world.anchor.terminal:
        return world.critic(state, world.anchor.policy(state[None])[0])
    a = policy(state)
    return world.critic(state, a) - penalty(world, state, a)


def penalty(world, state, action):
    """β‖a − π₀(s)‖² of one state (d,) and action (m,); 0 without an anchor."""
    if world.anchor is None:
        return 0.0
    return world.anchor.weight * (action - world.anchor.policy(state[None])[0]).square().sum()


def plan_return(policy, world, state, plan, noise):
    """J of one state (d,) and the actions (H, m), then the policy's; mean over noise (M, H, *noise_shape)."""
    total = torch.zeros((), dtype=state.dtype)
    for particle in noise:
        s = state
        for j, a in enumerate(plan):
            total = total + world.discount**j * world.reward(s[None], a[None])[0]
            s = world.dynamics(s[None], a[None], particle[j][None])[0]
        total = total + world.discount ** len(plan) * world.critic(s[None], policy(s[None]))[0]
    return total / len(noise)


def looped_gradient(policy, world, state, noise):
    """Ĵ (N,) and its gradient, one state and one particle at a time. state (N, d), noise (N, M, H, *noise_shape)."""
    batched = isinstance(policy, BatchedPolicy)
    module = policy.template if batched else policy
    own = {name: p.detach() for name, p in policy.named_parameters()}
    values, rows = [], []
    for n in range(state.shape[0]):
        parameters = {name: (p[n] if batched else p).clone().requires_grad_() for name, p in own.items()}
        value = 0.0
        for m in range(noise.shape[1]):
            value = value + one_return(
                lambda s, p=parameters: torch.func.functional_call(module, p, (s[None],))[0], world, state[n], noise[n, m]
            )
        value = value / noise.shape[1]
        gradient = (
            torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
            if value.requires_grad
            else [None] * len(own)
        )
        values.append(value.detach())
        rows.append(
            {k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(parameters.items(), gradient, strict=True)}
        )
    stacked = {k: torch.stack([row[k] for row in rows]) for k in own}
    return torch.stack(values), stacked if batched else {k: g.mean(0) for k, g in stacked.items()}


def relative_error(got, expected):
    """‖got − expected‖ / ‖expected‖ over a dict of tensors; two zeros agree."""
    assert list(got) == list(expected)
    difference = sum(float((got[k].double() - expected[k].double()).square().sum()) for k in expected)
    size = sum(float(expected[k].double().square().sum()) for k in expected)
    return (difference / size) ** 0.5 if size else difference**0.5


def well_posed(policy, world, state, noise):
    """Whether anybody can know the gradient to 1e-12 in float64: autograd's own rounding error decides.

    Its error in float32, 2e9 times that in float64, has to be below 5e-6. Excluded, less than one random problem in ten:
    gradients that amplify every rounding (few DDIM steps of a hard schedule, composed) and those that are all cancellation
    (LayerNorm behind a ReLU layer with one live unit does not depend on its input).
    """
    exact = policy_gradient(policy, world, state, noise, method=Autograd()).gradient
    if not any(g.any() for g in exact.values()):
        return True
    parts = [copy.deepcopy(x) for x in (policy, world.dynamics, world.reward, world.critic)]
    anchor = world.anchor and replace(world.anchor, policy=copy.deepcopy(world.anchor.policy).float())
    for part in parts:
        if isinstance(part, torch.nn.Module):
            part.float()
    rounded = World(*parts[1:], world.discount, anchor=anchor)
    single = policy_gradient(parts[0], rounded, state.float(), noise.float(), method=Autograd())
    return relative_error(single.gradient, exact) < 5e-6
