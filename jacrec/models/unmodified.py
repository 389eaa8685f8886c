"""Which modules compute what their classes do: those without hooks, methods of their own, or parts of other classes."""

from functools import cache

from torch import nn
from torch.nn.modules import module as torch_module

WRITTEN: set[type] = {nn.ModuleList}
"""the classes with hand-written derivatives"""


def written(cls):
    """Class decorator: its forward has hand-written derivatives."""
    WRITTEN.add(cls)
    return cls


def has_manual_derivatives(module: object) -> bool:
    """Whether jacrec's hand-written derivatives hold for this module.

    Not if it or any submodule is a subclass, or has a hook, a parametrisation or a forward of its own; it is then treated as
    third-party.
    """
    if global_hooks():
        return False
    parts = [module]
    # not `modules()`, whose check for cycles is many times slower: this is called at every decision
    for part in parts:  # grows as it goes
        if type(part) not in WRITTEN or not is_unmodified(part):  # pyright: ignore
            return False
        own = part.__dict__["_modules"]
        if own:
            parts.extend(own.values())
    return True


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(getattr(torch_module, f"_global{name}") for name in HOOKS)


def global_hooks() -> bool:
    """Whether torch calls a hook with every module."""
    return any(_GLOBAL_HOOKS)


@cache
def methods_of(kind: type) -> frozenset[str]:
    """The names of the methods that decide what a module of this class computes: those beside `nn.Module`'s, and its calls."""
    own = {name for name in dir(kind) if callable(getattr(kind, name))}.difference(dir(nn.Module))
    return frozenset(own | {"forward", "_call_impl", "_wrapped_call_impl"})


def is_unmodified(module: nn.Module) -> bool:
    """Whether a module, its submodules aside, has no hooks and the methods of its class."""
    own = module.__dict__
    hooks = own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
    return not hooks and own.keys().isdisjoint(methods_of(type(module)))
