"""The oracle, written once: the imagined return of one noise sequence in the plainest torch, differentiated by autograd."""

import copy
import itertools

import torch

from jacrec import Autograd, BatchedPolicy, World, policy_gradient


def one_return(policy, world, state, noise):
    """L of (3) for one state (d,) and one noise sequence (H, *noise_shape); policy: (d,) -> (m,)."""
    total, s = 0.0, state
    for j in range(noise.shape[0]):
        a = policy(s)
        total = total + world.discount**j * world.reward(s, a)
        s = world.dynamics(s, a, noise[j])
    return total + world.discount ** noise.shape[0] * world.critic(s, policy(s))


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


def well_posed(policy, world, state, noise, relative=1e-9):
    """Whether the gradient can be known to 1e-12 in float64 by anybody, autograd included.

    Excluded, about one random problem in ten: gradients that amplify a relative change of all numbers they are computed
    from more than a hundredfold (few DDIM steps of a hard schedule, composed), and those below 1e-4 that are not exactly
    zero (LayerNorm behind a ReLU layer with one live unit does not depend on its input: all that is left is cancellation).
    """
    exact = policy_gradient(policy, world, state, noise, method=Autograd()).gradient
    size = sum(float(g.square().sum()) for g in exact.values()) ** 0.5
    if size == 0:
        return True
    generator = torch.Generator().manual_seed(0)

    def moved(x):
        return x * (1 + relative * torch.randn(x.shape, generator=generator, dtype=x.dtype))

    parts = [copy.deepcopy(x) for x in (policy, world.dynamics, world.reward, world.critic)]
    with torch.no_grad():
        for p in itertools.chain(*(part.parameters() for part in parts if isinstance(part, torch.nn.Module))):
            p.copy_(moved(p))
    near = policy_gradient(parts[0], World(*parts[1:], world.discount), moved(state), moved(noise), method=Autograd())
    return size > 1e-4 and relative_error(near.gradient, exact) < 100 * relative
