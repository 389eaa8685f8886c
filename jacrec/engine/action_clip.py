"""Where a controller's action leaves it, it is clipped to [-1, 1]."""

import warnings

from torch import Tensor, nn

from jacrec.models.networks import Actor, has_manual_derivatives


class ActionClip:
    """Clips a policy's actions to [-1, 1] and warns the first time that one lies outside.

    Imagination uses the policy as it is; only the action that is executed is clipped. Actions inside keep their bits.
    """

    def __init__(self):
        self.warned = False

    def __call__(self, action: Tensor, policy: nn.Module) -> Tensor:
        """The actions (..., m) of `policy`, clipped."""
        if action.device.type != "cpu" and _ends_with_tanh(policy):
            return action  # without a look at the numbers, which the host would wait for
        if bool((action.abs() <= 1.0).all()):
            return action
        if not self.warned and bool((action.abs() > 1.0).any()):
            self.warned = True
            warnings.warn(
                f"policy: expected actions in [-1, 1], got {action[action.abs() > 1.0][0].item():g}; actions are clipped before "
                "they are executed, but not in imagination: end the policy with tanh",
                UserWarning,
                stacklevel=4,
            )
        return action.clamp(-1.0, 1.0)


def _ends_with_tanh(policy: nn.Module) -> bool:
    actor = getattr(policy, "template", policy)
    return isinstance(actor, Actor) and has_manual_derivatives(actor) and actor.mlp.tanh_output
