"""The policy at a batch of states: π_ψ(s), Π_s, and products with Π_ψ, which stays factored per layer."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from jacrec.engine.jacobians import generic
from jacrec.engine.jacobians.mlp import MLPTape, mlp_parameter_pull, mlp_parameter_rows, mlp_pull, mlp_record
from jacrec.models.layers import Layers, layers_of
from jacrec.models.networks import MLP, Actor, affine, has_manual_derivatives, is_unmodified
from jacrec.models.world import BatchedPolicy
from jacrec.models.wrappers import copied


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


def policy_as_it_is(policy: nn.Module) -> Callable[[Tensor], PolicyPass]:
    """`policy_pass` of the policy as it is now, whatever becomes of it."""
    network = written_network(policy)
    if isinstance(network, str):
        return partial(policy_pass, copied(policy))
    kept = replace(network, mlp=network.mlp.snapshot(), named=network.names())
    return partial(ActorPass, kept, keep_inputs=True)


def policy_pass(policy: nn.Module, state: Tensor, *, parameters: bool = True) -> PolicyPass:
    """Evaluate the policy at `state` (N, R, d): by hand where it has a `written_network`, else by torch.func.

    Set `parameters` to False where no product with Π_ψ will be asked for: less is kept.
    """
    network = written_network(policy)
    if isinstance(network, str):
        return generic.GenericPolicyPass(policy, state)
    return ActorPass(network, state, keep_inputs=parameters)


@dataclass(frozen=True)
class PolicyNetwork:
    """A policy as a network with hand-written derivatives, whose parameters are the policy's own."""

    policy: nn.Module
    mlp: MLP
    """a stack of n networks for a `BatchedPolicy`"""
    layers: Layers | None = None
    """where the network is read from a module of torch's own layers"""
    named: dict[str, str] | None = None
    """its `names` where they are known"""

    def names(self) -> dict[str, str]:
        """The network's parameter -> the policy's, in the policy's order."""
        if self.named is not None:
            return self.named
        if self.layers is None:
            return {name: f"mlp.{name}" for name, _ in self.mlp.named_parameters()}
        own = {f"{path}.{x}": f"{ours}.{x}" for ours, path, table in self.layers.tables() for x in table}
        return {own[name]: name for name, _ in self.policy.named_parameters()}


def written_network(policy: nn.Module) -> PolicyNetwork | str:
    """The policy's network, or why it has none with hand-written derivatives.

    It has one if it is an unmodified `Actor`, an `nn.Sequential` of known layers, or a `BatchedPolicy` of one, with no
    parameter besides the network's or tied to another.
    """
    architecture = policy.template if type(policy) is BatchedPolicy else policy
    if type(architecture) is Actor:
        if not _own_network(policy):
            return "expected no parameter added or tied, and no hooks or other methods"
        return PolicyNetwork(policy, cast(MLP, policy._modules["mlp"]))
    layers = layers_of(architecture)
    if isinstance(policy, BatchedPolicy) and isinstance(layers, Layers):
        layers = _stacked(policy, layers)
    if isinstance(layers, str):
        return layers
    return PolicyNetwork(policy, MLP.of_layers(layers, policy.n if isinstance(policy, BatchedPolicy) else None), layers)


def has_written_jacobian(policy: nn.Module) -> bool:
    """Whether the policy has a `written_network`."""
    return not isinstance(written_network(policy), str)


def _own_network(policy: nn.Module) -> bool:
    """Whether an `Actor`, or a `BatchedPolicy` of one, is what its class says."""
    if type(policy) is BatchedPolicy:
        if (
            not has_manual_derivatives(policy.template)
            or not has_manual_derivatives(policy._modules["mlp"])
            or not is_unmodified(policy)
        ):
            return False
    elif not has_manual_derivatives(policy):
        return False
    mlp = cast(MLP, policy._modules["mlp"])
    own = [p for layer in (*mlp.layers, *mlp.norms) for p in layer._parameters.values()]
    return (
        not policy._parameters
        and not mlp._parameters
        and len(policy._modules) == 1
        and len(mlp._modules) == 2
        and (len({id(p) for p in own}) == len(own) == 2 * (len(mlp.layers) + len(mlp.norms)))
    )


def _stacked(policy: BatchedPolicy, layers: Layers) -> Layers | str:
    """The layers of a batch of policies: those of its architecture, with the parameters that it holds for all n."""
    altered = "expected the parameters of its template, each with a leading axis n, and no others; make it anew"
    if not is_unmodified(policy):
        return "expected a BatchedPolicy without hooks and other methods, got one with some"
    held = dict(policy.named_parameters())
    expected = {f"{path}.{x}": p for _, path, table in layers.tables() for x, p in table.items()}
    if held.keys() != expected.keys() or any(True for _ in policy.buffers()):
        return altered
    if any(type(p) is not nn.Parameter or p.shape != (policy.n, *expected[name].shape) for name, p in held.items()):
        return altered

    def tables(of: dict) -> dict:
        return {path: policy.get_submodule(path)._parameters for path in of}

    return replace(layers, linears=tables(layers.linears), norms=tables(layers.norms))


class ActorPass:
    """`PolicyPass` of a `PolicyNetwork`, by hand."""

    def __init__(self, network: PolicyNetwork, state: Tensor, *, keep_inputs: bool):
        self.network, self.mlp = network, network.mlp
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
        found = mlp_parameter_pull(self.mlp, self.tape, self.state, w)
        return {name: found[own] for own, name in self.network.names().items()}

    def parameter_rows(self, w: Tensor) -> dict[str, Tensor]:
        found = mlp_parameter_rows(self.mlp, self.tape, self.state, w)
        return {name: found[own] for own, name in self.network.names().items()}
