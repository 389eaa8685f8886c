"""Access to the fused gradient kernels: which module serves a device, and why one cannot."""

from importlib import import_module
from types import ModuleType

from torch import Tensor, nn

from jacrec.engine.problem import Problem
from jacrec.models.world import World
from jacrec.util.errors import expect_one_of
from jacrec.util.forks import one_thread_after_fork
from jacrec.util.signals import is_interrupt

KERNELS = ("plain", "fused")
PRECISIONS = ("ieee", "tf32x3", "tf32")
MODULES = {"cpu": "jacrec.kernels.cpu.gradient.gradient", "cuda": "jacrec.kernels.gradient"}
NEEDS = {"cpu": "numba", "cuda": "triton"}
FORMS = {"cpu": ("forward", "adjoint", "multistep"), "cuda": ("forward", "adjoint")}

_loaded: dict[str, ModuleType | str] = {}
"""by device: the imported kernels, or why they cannot be imported"""


def _load(device: str) -> ModuleType | str:
    found = _loaded.get(device)
    if found is None:
        try:
            found = import_module(MODULES[device])
        except (ImportError, RuntimeError) as error:
            if is_interrupt(error):
                raise KeyboardInterrupt from error
            found = f"{NEEDS[device]} cannot be imported ({error}); pip install {NEEDS[device]}"
        _loaded[device] = found
    return found


def _loaded_for(p: Problem, form: str) -> ModuleType | str:
    """The kernels of the problem's device, or why there are none for a form."""
    device = p.state.device.type
    if device not in MODULES:
        return f"there are kernels for {' and '.join(MODULES)}, got tensors on {p.state.device}"
    return _load(device) if form in FORMS[device] else f"there are no {device} kernels for the {form} form"


def unsupported_reason(p: Problem, form: str) -> str | None:
    """Why the device's fused kernels cannot compute `form` ("forward", "adjoint" or "multistep"); None if they can."""
    module = _loaded_for(p, form)
    if isinstance(module, str):
        return module
    with one_thread_after_fork():  # torch lays out the plan
        return module.unsupported_reason(p, form)


def part_reasons(p: Problem, form: str) -> dict[str, str]:
    """Why each part of a problem is not in the device's compiled code, by name; all of them under "kernels" where nothing can be."""
    module = _loaded_for(p, form)
    if isinstance(module, str):
        return {"kernels": module}
    with one_thread_after_fork():
        return dict(module.part_reasons(p, form))


def kept_plan(policy: nn.Module, world: World, state: Tensor, *, examined: bool = False) -> object | None:
    """The plan that the device's kernels keep for a policy and a world, if neither has changed since it was made.

    None before the first use of the kernels, which are not loaded for it, and for arguments that are not a policy, a
    world and a state.

    Args:
        examined: whether the parts that are not jacrec's have been examined just now; else they have no plan.
    """
    if not isinstance(world, World) or not isinstance(state, Tensor) or not state.dim():
        return None
    module = _loaded.get(state.device.type)
    if not isinstance(module, ModuleType):
        return None
    return (module.examined_plan if examined else module.kept_plan)(policy, world, state)


def kernels(p: Problem, form: str, *, checked: bool = False) -> ModuleType:
    """The kernels' module for the problem's device.

    Args:
        checked: the caller has just asked `unsupported_reason`.

    Raises:
        ValueError: it cannot serve this problem; gives the reason.
    """
    reason = None if checked else unsupported_reason(p, form)
    if reason:
        raise ValueError(f'kernel="fused": {reason}; use kernel="plain", or Auto(), which falls back by itself')
    module = _load(p.state.device.type)
    assert isinstance(module, ModuleType)
    return module


def fused_chain(p: Problem) -> ModuleType | None:
    """The compiled twin of `jacrec.engine.jacobians.chain`; None where it cannot serve the problem.

    On a CPU alone: a single transition of few rows is too little work for a launch on a GPU.
    """
    if p.state.device.type != "cpu" or unsupported_reason(p, "forward"):
        return None
    return kernels(p, "forward", checked=True).chain


def compiled(p: Problem, form: str) -> ModuleType | None:
    """The module of kernels on a CPU that serves diagnostics by a form; None where plain torch has to.

    "forward": `rollout_jacobians` and `growth`; "adjoint": `visits` and `particle_squares`, for H > 0. Each serves what the
    method of its name does with kernel="fused", but for the Jacobians of a rollout that ends in the base policy's action.
    """
    anchor = p.world.anchor
    if form == "forward" and anchor is not None and anchor.terminal:
        return None
    if p.state.device.type != "cpu" or (form == "adjoint" and p.H == 0) or unsupported_reason(p, form):
        return None
    return kernels(p, form, checked=True)


def check_kernel(name: str, kernel: str, precision: str | None) -> None:
    """ValueError unless `kernel` and `precision` exist and can be combined."""
    expect_one_of(f"{name}.kernel", kernel, KERNELS)
    if precision is not None:
        expect_one_of(f"{name}.precision", precision, PRECISIONS)
        if kernel == "plain":
            raise ValueError(
                f'{name}.precision: expected None with kernel="plain", got {precision!r}; '
                "it is an option of the fused kernels on a GPU"
            )
