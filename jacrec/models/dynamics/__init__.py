"""World-model dynamics: maps f(state, action, noise) -> next state with `noise_shape`."""

from jacrec.models.dynamics.chain import ChainDynamics
from jacrec.models.dynamics.deterministic import DeterministicDynamics
from jacrec.models.dynamics.diffusion import DiffusionDynamics
from jacrec.models.dynamics.ensemble import EnsembleDynamics
from jacrec.models.dynamics.flow import FlowDynamics
from jacrec.models.dynamics.meanflow import MeanFlowDynamics
from jacrec.models.dynamics.multistep import MultiStepDynamics

__all__ = [
    "ChainDynamics",
    "DeterministicDynamics",
    "DiffusionDynamics",
    "EnsembleDynamics",
    "FlowDynamics",
    "MeanFlowDynamics",
    "MultiStepDynamics",
]
