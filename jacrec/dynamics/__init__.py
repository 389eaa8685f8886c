"""World-model dynamics: maps f(state, action, noise) -> next state with `noise_shape`."""

from jacrec.dynamics.chain import ChainDynamics
from jacrec.dynamics.deterministic import DeterministicDynamics
from jacrec.dynamics.diffusion import DiffusionDynamics
from jacrec.dynamics.ensemble import EnsembleDynamics
from jacrec.dynamics.flow import FlowDynamics
from jacrec.dynamics.meanflow import MeanFlowDynamics
from jacrec.dynamics.multistep import MultiStepDynamics

__all__ = [
    "ChainDynamics", "DeterministicDynamics", "DiffusionDynamics", "EnsembleDynamics", "FlowDynamics", "MeanFlowDynamics",
    "MultiStepDynamics",
]  # fmt: skip
