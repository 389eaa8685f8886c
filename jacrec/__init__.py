"""Model predictive control through differentiable world models, with hand-written policy gradients.

`mpc_update` improves a policy's own parameters by gradient ascent through imagined rollouts; the gradient is computed by the
recursions of Theorem 4.1 instead of automatic differentiation.

Public names and subpackages are imported on first access, so `import jacrec` does not import torch.
"""

from importlib import import_module

TYPE_CHECKING = False  # a type checker takes it for typing's, whose import would be most of the time until Ctrl-C is met

if TYPE_CHECKING:
    from jacrec import adapters as adapters
    from jacrec import commands as commands
    from jacrec import control as control
    from jacrec import data as data
    from jacrec import engine as engine
    from jacrec import envs as envs
    from jacrec import evaluation as evaluation
    from jacrec import experimental as experimental
    from jacrec import kernels as kernels
    from jacrec import models as models
    from jacrec import online as online
    from jacrec import planners as planners
    from jacrec import studies as studies
    from jacrec import training as training
    from jacrec import util as util
    from jacrec.control.config import MPCConfig
    from jacrec.control.controller import MPC
    from jacrec.control.mpc import MPCStep, mpc_update
    from jacrec.control.storage import load, save
    from jacrec.engine.choice import explain
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
    from jacrec.models.world import Anchor, BatchedPolicy, World, value_scale

__version__ = "0.3.0"

__all__ = [
    "MPC",
    "Actor",
    "Adjoint",
    "Anchor",
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
    "explain",
    "gradient_signal",
    "imagined_return",
    "linearize",
    "load",
    "mpc_update",
    "policy_gradient",
    "rollout",
    "save",
    "state_growth",
    "value_scale",
]

_PUBLIC = {
    "control.config": "MPCConfig",
    "control.controller": "MPC",
    "control.mpc": "MPCStep mpc_update",
    "control.storage": "load save",
    "engine.choice": "explain",
    "engine.diagnostics": "GradientSignal gradient_signal state_growth",
    "engine.feedback": "FeedbackGains",
    "engine.linearize": "Linearization linearize",
    "engine.methods": "Adjoint Auto Autograd FiniteDifference Forward MultiStep policy_gradient",
    "engine.rollout": "imagined_return rollout",
    "engine.types": "DynamicsJacobians PolicyGradient Sensitivities",
    "experimental.decoupled": "Decoupled decoupled_gradient",
    "models.dynamics": "DeterministicDynamics DiffusionDynamics EnsembleDynamics FlowDynamics MeanFlowDynamics MultiStepDynamics",
    "models.networks": "Actor Denoiser RewardModel TwinCritic",
    "models.world": "Anchor BatchedPolicy World value_scale",
}
"""module below jacrec -> its public names, as in the imports above"""
_MODULES = {name: f"jacrec.{module}" for module, names in _PUBLIC.items() for name in names.split()}
_SUBPACKAGES = (
    "adapters",
    "commands",
    "control",
    "data",
    "engine",
    "envs",
    "evaluation",
    "experimental",
    "kernels",
    "models",
    "online",
    "planners",
    "studies",
    "training",
    "util",
)


if not TYPE_CHECKING:  # a type checker that saw it would accept every name

    def __getattr__(name: str):
        if name in _MODULES:
            value = getattr(import_module(_MODULES[name]), name)
            globals()[name] = value  # found without this function from now on
            return value
        if name in _SUBPACKAGES:
            return import_module(f"jacrec.{name}")
        raise AttributeError(f"module 'jacrec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})
