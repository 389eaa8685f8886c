"""jacrec: a policy that thinks before each action.

`mpc_update` improves a policy's own parameters by gradients through imagined futures, computed by the recursions of
Theorem 4.1 instead of automatic differentiation.
"""

from jacrec.controller import MPC, MPCConfig
from jacrec.decoupled import Decoupled, decoupled_gradient
from jacrec.dynamics import (
    DeterministicDynamics,
    DiffusionDynamics,
    EnsembleDynamics,
    FlowDynamics,
    MeanFlowDynamics,
    MultiStepDynamics,
)
from jacrec.feedback import FeedbackGains
from jacrec.linearize import Linearization, linearize
from jacrec.methods import Adjoint, Auto, Autograd, FiniteDifference, Forward, MultiStep, policy_gradient
from jacrec.mpc import MPCStep, mpc_update
from jacrec.networks import Actor, Denoiser, RewardModel, TwinCritic
from jacrec.rollout import imagined_return, rollout
from jacrec.trust import GradientSignal, gradient_signal, state_growth
from jacrec.types import DynamicsJacobians, PolicyGradient, Sensitivities
from jacrec.world import BatchedPolicy, World

__version__ = "0.1.0"

__all__ = [
    "MPC", "Actor", "Adjoint", "Auto", "Autograd", "BatchedPolicy", "Decoupled", "Denoiser", "DeterministicDynamics",
    "DiffusionDynamics", "DynamicsJacobians", "EnsembleDynamics", "FeedbackGains", "FiniteDifference", "FlowDynamics",
    "Forward", "GradientSignal", "Linearization", "MPCConfig", "MPCStep", "MeanFlowDynamics", "MultiStep", "MultiStepDynamics",
    "PolicyGradient", "RewardModel", "Sensitivities", "TwinCritic", "World", "decoupled_gradient", "gradient_signal",
    "imagined_return", "linearize", "mpc_update", "policy_gradient", "rollout", "state_growth",
]  # fmt: skip
