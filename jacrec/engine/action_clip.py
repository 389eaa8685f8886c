"""Bounds on the executed action: [-1, 1], and the distance from another action."""

import math
from weakref import WeakSet

import torch
from torch import Tensor, nn

from jacrec.engine.shapes import few_numbers, readable
from jacrec.models.layers import Layers, layers_of
from jacrec.models.networks import Actor, has_manual_derivatives
from jacrec.models.world import architecture_of
from jacrec.util.caller import warn_caller

warned: WeakSet[nn.Module] = WeakSet()
"""policies whose actions have been clipped with a warning"""


def clip_action(action: Tensor, policy: nn.Module) -> Tensor:
    """The actions (..., m) of `policy` in [-1, 1], with a warning the first time that one of this policy lies outside.

    Imagination uses the policy as it is; only the action that is executed is clipped. Actions inside keep their bits.
    """
    if action.device.type != "cpu" and ends_with_tanh(policy):
        return action  # without a look at the numbers, which the host would wait for
    few = few_numbers(action) if readable(action) else None
    if torch.linalg.vector_norm(action, math.inf).item() <= 1.0 if few is None else all(-1.0 <= x <= 1.0 for x in few):
        return action
    if policy not in warned and bool((action.abs() > 1.0).any()):
        warned.add(policy)
        warn_caller(
            f"policy: expected actions in [-1, 1], got {action[action.abs() > 1.0][0].item():g}; actions are clipped before "
            "they are executed, but not in imagination: end the policy with tanh"
        )
    return action.detach().clamp(-1.0, 1.0)


def near(action: Tensor, base: Tensor, bound: float | None) -> Tensor:
    """The actions (..., m), each component at most `bound` from that of `base`; None: as they are."""
    if bound is None:
        return action
    change = action - base
    # actions inside the box keep their bits
    return torch.where(change.abs() <= bound, action, base + change.clamp(-bound, bound))


def ends_with_tanh(policy: nn.Module) -> bool:
    """Whether a policy is an unmodified `Actor`, one of torch's own layers, or a batch of them, and cannot leave [-1, 1]."""
    actor = architecture_of(policy)
    if isinstance(actor, Actor):
        return has_manual_derivatives(actor) and actor.mlp.tanh_output
    layers = layers_of(actor)
    return isinstance(layers, Layers) and layers.tanh_output
