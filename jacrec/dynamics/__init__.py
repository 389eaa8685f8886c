"""World-model dynamics: maps f(state, action, noise) -> next state with `noise_shape`."""

from jacrec.dynamics.deterministic import DeterministicDynamics
from jacrec.dynamics.diffusion import DiffusionDynamics

__all__ = ["DeterministicDynamics", "DiffusionDynamics"]
