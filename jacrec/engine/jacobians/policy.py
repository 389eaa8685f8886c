"""The policy at a batch of states: π_ψ(s), Π_s, and products with Π_ψ, which stays factored per layer."""

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from jacrec.engine.jacobians import generic
from jacrec.engine.jacobians.mlp import MLPTape, mlp_parameter_pull, mlp_parameter_rows, mlp_pull, mlp_record
from jacrec.models.networks import MLP, Actor, affine, has_manual_derivatives, is_unmodified
from jacrec.models.world import BatchedPolicy


class PolicyPass(Protocol):
    """One evaluation of the policy at states (N, R, d), ready to be differentiated."""

    action: Tensor  # (N, R, m)

    def Pi_s(self) -> Tensor:
        """Π_s = ∂π/∂s, (N, R, m, d). (9)"""
        ...

    def pull_state(self, w: Tensor) -> Tensor:
        """Π_sᵀ w: (N, R, m) -> (N, R, d)."""
        ...

    def pull_parameters(self, w: Tensor) -> dict[str, Tensor]:
        """Σ w Π_ψ over the R rows (and over N if ψ is shared), by parameter name. (9)"""
        ...

    def parameter_rows(self, w: Tensor) -> dict[str, Tensor]:
        """w Π_ψ row by row: w (N, R, m) or (N, R, T, m) -> (N, R, [T,] *shape)."""
        ...


def policy_pass(policy: nn.Module, state: Tensor, *, parameters: bool = True) -> PolicyPass:
    """Evaluate the policy at `state` (N, R, d): by hand for an `Actor` (or a `BatchedPolicy` of one), else by torch.func.

    Set `parameters` to False where no product with Π_ψ will be asked for: less is kept.
    """
    if has_written_jacobian(policy):
        return ActorPass(policy, state, keep_inputs=parameters)
    return generic.GenericPolicyPass(policy, state)


def has_written_jacobian(policy: nn.Module) -> bool:
    """Whether the policy is one of jacrec's own networks, with no parameter besides the network's or tied to another."""
    if type(policy) is BatchedPolicy:
        if (
            type(policy.template) is not Actor
            or not has_manual_derivatives(policy.template)
            or not has_manual_derivatives(policy._modules["mlp"])
        ):
            return False
        if not is_unmodified(policy):
            return False
    elif type(policy) is not Actor or not has_manual_derivatives(policy):
        return False
    mlp = cast(MLP, policy._modules["mlp"])
    own = [p for layer in (*mlp.layers, *mlp.norms) for p in layer._parameters.values()]
    return (
        not policy._parameters
        and not mlp._parameters
        and len(policy._modules) == 1
        and len(mlp._modules) == 2
        and (len({id(p) for p in own}) == len(own))
    )


class ActorPass:
    """`PolicyPass` of an `Actor`, by hand."""

    def __init__(self, policy: nn.Module, state: Tensor, *, keep_inputs: bool):
        self.mlp: MLP = policy.get_submodule("mlp")  # pyright: ignore[reportAttributeAccessIssue]
        self.state = state
        self.tape: MLPTape
        self.action, self.tape = mlp_record(self.mlp, self.mlp.layers[0](state), keep_inputs=keep_inputs)

    def _first(self) -> Tensor:
        return self.mlp.layers[0].weight.mT

    def Pi_s(self) -> Tensor:
        m = self.mlp.out_dim
        unit = torch.eye(m, dtype=self.action.dtype, device=self.action.device).expand(*self.action.shape[:-1], m, m)
        return affine(mlp_pull(self.mlp, self.tape, unit), self._first())

    def pull_state(self, w: Tensor) -> Tensor:
        return affine(mlp_pull(self.mlp, self.tape, w), self._first())

    def pull_parameters(self, w: Tensor) -> dict[str, Tensor]:
        return {f"mlp.{k}": v for k, v in mlp_parameter_pull(self.mlp, self.tape, self.state, w).items()}

    def parameter_rows(self, w: Tensor) -> dict[str, Tensor]:
        return {f"mlp.{k}": v for k, v in mlp_parameter_rows(self.mlp, self.tape, self.state, w).items()}
