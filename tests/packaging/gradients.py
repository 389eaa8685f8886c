"""Run in an installation: one gradient of every fused kernel against autograd."""

import os
from importlib import import_module
from pathlib import Path

import torch

import jacrec
from jacrec import (
    Actor,
    Adjoint,
    Autograd,
    DeterministicDynamics,
    DiffusionDynamics,
    EnsembleDynamics,
    FlowDynamics,
    Forward,
    MeanFlowDynamics,
    MultiStep,
    MultiStepDynamics,
    RewardModel,
    TwinCritic,
    World,
    policy_gradient,
)
from jacrec.engine import dispatch
from jacrec.engine.rollout import noise_like
from jacrec.engine.shapes import problem

SIZES = (3, 2, (16, 16))  # d, m, hidden
FUSED = (Forward(kernel="fused"), Adjoint(kernel="fused"))
WORLDS = (
    (DiffusionDynamics(*SIZES, steps=3), FUSED),
    (FlowDynamics(*SIZES, steps=3), FUSED),
    (MeanFlowDynamics(*SIZES), FUSED),
    (DeterministicDynamics(*SIZES), FUSED[1:]),
    (EnsembleDynamics(*SIZES), FUSED[1:]),
    (MultiStepDynamics(*SIZES, horizon=3), (MultiStep(kernel="fused"),)),
)


def compare(name, args, gradient):
    """One gradient against autograd's."""
    exact = policy_gradient(*args, method=Autograd()).gradient
    scale = max(float(g.abs().max()) for g in exact.values())
    error = max(float((gradient[k] - g).abs().max()) for k, g in exact.items()) / scale
    print(f"{name}: {error:.0e}")
    assert error < 1e-10, name


def arguments(dynamics):
    """Policy, world, state and noise in float64."""
    world = World(dynamics.double(), RewardModel(*SIZES).double(), TwinCritic(*SIZES).double(), 0.99)
    state = torch.randn(3, dtype=torch.float64)
    return Actor(*SIZES).double(), world, state, noise_like(world, state, 3, 2)


def main():
    """All kernels of the CPU; or those of a GPU, interpreted."""
    torch.manual_seed(0)
    if os.environ.get("TRITON_INTERPRET") == "1":
        kernels = import_module(dispatch.MODULES["cuda"])
        args = arguments(DiffusionDynamics(*SIZES, steps=2))
        for form in (kernels.forward_gradient, kernels.adjoint_gradient):
            compare(f"triton {form.__name__}", args, form(problem(*args)).gradient)
    else:
        kernels = import_module(dispatch.MODULES["cpu"])
        for dynamics, methods in WORLDS:
            args = arguments(dynamics)
            for method in methods:
                name = f"{type(dynamics).__name__} {type(method).__name__}"
                compare(name, args, policy_gradient(*args, method=method).gradient)
    assert Path(str(kernels.__file__)).is_relative_to(Path(str(jacrec.__file__)).parent), kernels.__file__


if __name__ == "__main__":
    main()
