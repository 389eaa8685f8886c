"""jacrec: a policy that thinks before each action.

`mpc_update` improves a policy's own parameters by gradients through imagined futures, computed by the recursions of
Theorem 4.1 instead of automatic differentiation.
"""

from jacrec.control.config import MPCConfig
from jacrec.control.controller import MPC
from jacrec.control.mpc import MPCStep, mpc_update
from jacrec.engine.diagnostics import GradientSignal, gradient_signal, state_growth
from jacrec.engine.feedback import FeedbackGains
from jacrec.engine.linearize import Linearization, linearize
from jacrec.engine.methods import Adjoint, Auto, Autograd, FiniteDifference, Forward, MultiStep, policy_gradient
from jacrec.engine.rollout import imagined_return, rollout
from jacrec.engine.types import DynamicsJacobians, PolicyGradient, Sensitivities
from jacrec.experimental.decoupled import Decoupled, decoupled_gradient
from jacrec.models.dynamics import (
    DeterministicDynamics,
    DiffusionDynamics,
    EnsembleDynamics,
    FlowDynamics,
    MeanFlowDynamics,
    MultiStepDynamics,
)
from jacrec.models.networks import Actor, Denoiser, RewardModel, TwinCritic
from jacrec.models.world import BatchedPolicy, World

__version__ = "0.1.0"

__all__ = [
    "MPC",
    "Actor",
    "Adjoint",
    "Auto",
    "Autograd",
    "BatchedPolicy",
    "Decoupled",
    "Denoiser",
    "DeterministicDynamics",
    "DiffusionDynamics",
    "DynamicsJacobians",
    "EnsembleDynamics",
    "FeedbackGains",
    "FiniteDifference",
    "FlowDynamics",
    "Forward",
    "GradientSignal",
    "Linearization",
    "MPCConfig",
    "MPCStep",
    "MeanFlowDynamics",
    "MultiStep",
    "MultiStepDynamics",
    "PolicyGradient",
    "RewardModel",
    "Sensitivities",
    "TwinCritic",
    "World",
    "decoupled_gradient",
    "gradient_signal",
    "imagined_return",
    "linearize",
    "mpc_update",
    "policy_gradient",
    "rollout",
    "state_growth",
]
