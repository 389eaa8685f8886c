"""What others wrap around a module: taken off, so that the module itself is used; and copies of modules that torch cannot copy."""

import copy
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

Module = TypeVar("Module", bound=nn.Module)
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_OPAQUE = (type, ModuleType, FunctionType, MethodType, BuiltinFunctionType, str, bytes, int, float, complex, type(None))


def unwrapped(part: Any) -> Any:
    """The module or function inside `torch.compile`, `DataParallel` and `DistributedDataParallel`; anything else itself.

    It has the same parameters. Compiled graphs free what a second product with the same Jacobian needs, and neither wrapper
    can be called with other parameters than its own.
    """
    while True:
        inner = _inside(part)
        if inner is None:
            return part
        part = inner[1]


def wrapper_prefix(module: nn.Module) -> str:
    """What the wrappers put in front of the names of the parameters inside; "" without one."""
    prefix, inner = "", _inside(module)
    while inner is not None:
        prefix, inner = f"{prefix}{inner[0]}", _inside(inner[1])
    return prefix


def _inside(part: Any) -> tuple[str, Any] | None:
    """The name of what is wrapped, as in the names of parameters, and the thing itself."""
    if isinstance(part, nn.Module):
        if "_orig_mod" in part._modules:
            return "_orig_mod.", part._modules["_orig_mod"]
        return ("module.", part._modules["module"]) if isinstance(part, _PARALLEL) else None
    original = getattr(part, "_torchdynamo_orig_callable", None)
    return None if original is None else ("", original)


def check_policy_kind(policy: object) -> None:
    """ValueError unless it is a module whose parameters can be exchanged for others in a call."""
    if not isinstance(policy, nn.Module):
        raise ValueError(f"policy: expected a torch.nn.Module state -> action, got {type(policy).__name__}")
    if isinstance(policy, torch.jit.ScriptModule):
        raise ValueError(
            f"policy: expected the module itself, got its {type(policy).__name__}, whose graph is fixed; pass the module that "
            "torch.jit was given, or one of the same class after .load_state_dict(scripted.state_dict())"
        )


def copied(module: Module) -> Module:
    """A deep copy, also of a module that keeps an intermediate result, such as an activation: torch refuses to copy those.

    They are copied as plain values: the next call of the copy replaces them.
    """
    try:
        return copy.deepcopy(module)
    except RuntimeError as error:
        memo: dict[int, Tensor] = {}
        _find_results(module, memo, set())
        if not memo:
            raise ValueError(
                f"{type(module).__name__}: expected a module that copy.deepcopy can copy, got {error}; give it a __deepcopy__"
            ) from error
        return copy.deepcopy(module, memo)


def _find_results(root: object, memo: dict[int, Tensor], seen: set[int]) -> None:
    """Detached copies of the intermediate results below an object, by their ids."""
    below = [root]
    while below:
        thing = below.pop()
        if isinstance(thing, _OPAQUE) or id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            if is_functorch_wrapped_tensor(thing):  # of a call that has ended
                memo[id(thing)] = torch.empty(0)
            elif not thing.is_leaf:
                memo[id(thing)] = thing.detach().clone()
        elif isinstance(thing, dict):
            below.extend(thing.values())
        elif isinstance(thing, list | tuple | set | frozenset):
            below.extend(thing)
        else:
            below.append(getattr(thing, "__dict__", None))
