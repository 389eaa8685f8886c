"""The dynamics f_θ with its Jacobians F_s, F_a as products: tangents pushed forward, cotangents pulled back. (12)"""

from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from jacrec.engine.jacobians import chain, generic
from jacrec.engine.jacobians.chain import level_table
from jacrec.engine.jacobians.ensemble import EnsemblePass
from jacrec.engine.jacobians.mlp import join, mlp_pull, mlp_push, mlp_record, split
from jacrec.engine.types import DynamicsJacobians
from jacrec.models.dynamics import ChainDynamics, DeterministicDynamics, EnsembleDynamics
from jacrec.models.dynamics.multistep import MultiStepDynamics
from jacrec.models.networks import has_manual_derivatives
from jacrec.models.world import Dynamics


class Pull(Protocol):
    """λ (B, d) -> F_sᵀ λ (B, d), F_aᵀ λ (B, m)."""

    def __call__(self, cotangent: Tensor) -> tuple[Tensor, Tensor]: ...


class DynamicsPass(Protocol):
    """f_θ with its derivatives; one object serves all steps of a gradient."""

    def step(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """Next state (B, d) alone."""
        ...

    def push(self, state: Tensor, action: Tensor, noise: Tensor, ds: Tensor, da: Tensor) -> tuple[Tensor, Tensor]:
        """Next state (B, d) and tangents F_s ds + F_a da (B, T, d), for ds (B, T, d), da (B, T, m)."""
        ...

    def record(self, state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Pull]:
        """Next state (B, d), and the transposed Jacobian as a function."""
        ...


def dynamics_pass(dynamics: Dynamics, *, recompute: bool = False, chain: ModuleType = chain) -> DynamicsPass:
    """The derivatives of `dynamics`: by hand for jacrec's own classes, else by torch.func.

    `recompute`: `record` keeps the chain's latents only, where there is a chain. `chain`: the module whose `chain_forward`,
    `chain_record` and `chain_adjoint` are used, `jacrec.engine.jacobians.chain` or a fused twin of it.

    Raises:
        ValueError: the dynamics predict several steps at once, and are no map of one step to the next.
    """
    if isinstance(dynamics, MultiStepDynamics):
        raise ValueError(
            "dynamics: expected a one-step world model, got MultiStepDynamics, which predicts all steps from the "
            'first state; use method=Auto() (or "auto"), Autograd() or MultiStep(), which know how'
        )
    if isinstance(dynamics, ChainDynamics) and has_manual_derivatives(dynamics):
        return ChainPass(dynamics, recompute, chain)
    if type(dynamics) is DeterministicDynamics and has_manual_derivatives(dynamics):
        return DeterministicPass(dynamics)
    if type(dynamics) is EnsembleDynamics and has_manual_derivatives(dynamics):
        return EnsemblePass(dynamics)
    return generic.GenericDynamicsPass(dynamics)


def unit_directions(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """ds (B, d+m, d), da (B, d+m, m): first the d unit vectors of s, then the m of a."""
    d, m = state.shape[-1], action.shape[-1]
    unit = torch.eye(d + m, dtype=state.dtype, device=state.device).expand(*state.shape[:-1], d + m, d + m)
    return unit[..., :d], unit[..., d:]


def jacobians(passes: DynamicsPass, state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, DynamicsJacobians]:
    """Next state and F_s, F_a, from d+m unit tangents: state (B, d), action (B, m), noise (B, *noise_shape)."""
    next_state, columns = passes.push(state, action, noise, *unit_directions(state, action))
    d = state.shape[-1]
    return next_state, DynamicsJacobians(F_s=columns[:, :d].mT, F_a=columns[:, d:].mT)


class ChainPass:
    """`DynamicsPass` of a chain; (24)–(32)."""

    def __init__(self, dynamics: ChainDynamics, recompute: bool, chain: ModuleType):
        self.dynamics, self.recompute, self.chain = dynamics, recompute, chain
        self.table = level_table(dynamics)

    def step(self, state, action, noise):
        return self.push(state, action, noise, *(x.new_empty(len(x), 0, x.shape[-1]) for x in (state, action)))[0]

    def push(self, state, action, noise, ds, da):
        return self.chain.chain_forward(self.dynamics, state, action, noise, ds, da, self.table)

    def record(self, state, action, noise):
        next_state, tape = self.chain.chain_record(self.dynamics, state, action, noise, self.table, recompute=self.recompute)
        return next_state, lambda cotangent: self.chain.chain_adjoint(self.dynamics, tape, cotangent)


class DeterministicPass:
    """`DynamicsPass` of one network evaluation."""

    def __init__(self, dynamics: DeterministicDynamics):
        self.dynamics = dynamics

    def step(self, state, action, noise):
        return self.dynamics(state, action, noise)

    def push(self, state, action, noise, ds, da):
        f = self.dynamics
        inputs = join(torch.cat([f.standardise(state), action], -1), torch.cat([ds / f.state_std, da], -1))
        z = inputs @ f.mlp.layers[0].weight.mT
        z[:, 0] += f.mlp.layers[0].bias
        x, dx = split(mlp_push(f.mlp, z))
        tangents = dx * f.out_std
        return f.decode(state, x), tangents + ds if f.target == "difference" else tangents

    def record(self, state, action, noise):
        f = self.dynamics
        x, tape = mlp_record(f.mlp, f.mlp.layers[0](torch.cat([f.standardise(state), action], -1)))

        def pull(cotangent: Tensor) -> tuple[Tensor, Tensor]:
            v = mlp_pull(f.mlp, tape, cotangent * f.out_std) @ f.mlp.layers[0].weight
            v_s, v_a = v[:, : f.state_dim] / f.state_std, v[:, f.state_dim :]
            return v_s + cotangent if f.target == "difference" else v_s, v_a

        return f.decode(state, x), pull
