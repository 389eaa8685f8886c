"""The door to the fused kernels: which module serves a device, and why one cannot. The only importer of `jacrec.kernels`."""

import sys
from functools import cache
from importlib import import_module
from types import ModuleType

from torch import Tensor, nn

from jacrec.engine.problem import KernelPlan, Problem
from jacrec.models.world import World
from jacrec.util.errors import expect_one_of

KERNELS = ("plain", "fused")
PRECISIONS = ("ieee", "tf32x3", "tf32")
MODULES = {"cpu": "jacrec.kernels.cpu.gradient.gradient", "cuda": "jacrec.kernels.gradient"}
NEEDS = {"cpu": "numba", "cuda": "triton"}


@cache
def _load(device: str) -> ModuleType | str:
    try:
        return import_module(MODULES[device])
    except (ImportError, RuntimeError) as error:
        return f"{NEEDS[device]} cannot be imported ({error}); pip install {NEEDS[device]}"


def unsupported_reason(p: Problem, form: str) -> str | None:
    """Why the device's fused kernels cannot compute `form` ("forward" or "adjoint") of this gradient; None if they can."""
    device = p.state.device.type
    if device not in MODULES:
        return f"there are kernels for {' and '.join(MODULES)}, got tensors on {p.state.device}"
    module = _load(device)
    return module if isinstance(module, str) else module.unsupported_reason(p, form)


def kept_plan(policy: nn.Module, world: World, state: Tensor) -> KernelPlan | None:
    """The plan that a CPU's kernels keep for a policy and a world, where nothing has changed since it was made.

    None before the first use of the kernels, which are not loaded for it, and for what is not a policy, world and state.
    """
    if not isinstance(world, World) or not isinstance(state, Tensor) or not state.dim():
        return None
    # another thread may be importing it just now
    module = sys.modules.get(MODULES.get(state.device.type, ""))
    kept = getattr(module, {"cpu": "kept", "cuda": "kept_plan"}.get(state.device.type, ""), None)
    return None if kept is None else kept(policy, world, state)


def kernels(p: Problem, form: str, *, checked: bool = False) -> ModuleType:
    """The module with `forward_gradient` and `adjoint_gradient` for the problem's device.

    `checked`: the caller has just asked `unsupported_reason`.

    Raises:
        ValueError: it cannot serve this problem; says why.
    """
    reason = None if checked else unsupported_reason(p, form)
    if reason:
        raise ValueError(f'kernel="fused": {reason}; use kernel="plain", or Auto() which falls back by itself')
    module = _load(p.state.device.type)
    assert isinstance(module, ModuleType)
    return module


def fused_chain(p: Problem) -> ModuleType | None:
    """The twin of `jacrec.engine.jacobians.chain` in compiled code for the problem's parts; None where it cannot serve them.

    On a CPU alone: a single transition of few rows is too little for a launch.
    """
    if p.state.device.type != "cpu" or unsupported_reason(p, "forward"):
        return None
    return kernels(p, "forward", checked=True).chain


def check_kernel(name: str, kernel: str, precision: str | None) -> None:
    """ValueError unless `kernel` and `precision` are ones that exist and go together."""
    expect_one_of(f"{name}.kernel", kernel, KERNELS)
    if precision is not None:
        expect_one_of(f"{name}.precision", precision, PRECISIONS)
        if kernel == "plain":
            raise ValueError(
                f'{name}.precision: expected None with kernel="plain", got {precision!r}; '
                "it is an option of the fused kernels on a GPU"
            )
