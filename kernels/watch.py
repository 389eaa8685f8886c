"""Detects changes of modules since a plan was made for them: compared at every use, so that a stale plan is never followed."""

import operator
import weakref
from collections.abc import Collection, Iterator
from itertools import chain

from torch import Tensor, nn

from jacrec.models.networks import HOOKS, Affine, LayerNorm, global_hooks, methods_of
from jacrec.models.world import BatchedPolicy

LAYER, MODULE = ("_parameters",), ("_modules", "_parameters", "_buffers")
"""where a layer, which has no submodules, and any other module keep what is watched"""


class Watch:
    """The state of some modules: classes, methods, hooks, submodules, tensors and their addresses.

    The modules themselves are referred to weakly, their submodules and tensors strongly. Plain attributes that a plan
    depends on are compared by the plan.
    """

    def __init__(self, modules: list[nn.Module]):
        self.roots = [weakref.ref(module) for module in modules]
        parts = [part for module in modules for part in module_tree(module)]
        self.types = list(map(type, parts))
        self.root_indices = [i for i, part in enumerate(parts) if any(part is module for module in modules)]
        self.parts: list[nn.Module | None] = [None if i in self.root_indices else part for i, part in enumerate(parts)]
        self.attributes = [x.__dict__ for x in parts]
        self.counts = list(map(len, self.attributes))
        leaf = [type(x) in (Affine, LayerNorm) for x in parts]
        self.layers = [own for own, is_leaf in zip(self.attributes, leaf, strict=True) if is_leaf]
        self.others = [
            (own.keys(), methods_of(type(x)))
            for x, own, is_leaf in zip(parts, self.attributes, leaf, strict=True)
            if not is_leaf
        ]
        self.hooks = [own[name] for own in self.attributes for name in HOOKS]
        self.places = [
            (own, name)
            for own, is_leaf in zip(self.attributes, leaf, strict=True)
            for name in (*(LAYER if is_leaf else MODULE), *HOOKS)
        ]
        self.found = self._found()
        self.empty = [held for held in self.found if not held]
        self.holders: list[dict] = [held for x in parts for held in (x._modules, x._parameters, x._buffers) if held]
        self.held = self._held()
        tensors = [x for x in self.held if isinstance(x, Tensor)]
        self.questions = [[getattr(x, name) for x in tensors] for name in ("data_ptr", "size", "stride")]
        self.tensors = tensors
        self.answers = self._answers()

    def _found(self) -> list[dict]:
        return [own[name] for own, name in self.places]

    def _held(self) -> list[object]:
        return list(chain.from_iterable(map(dict.values, self.holders)))

    def _answers(self) -> list:
        return [*[[ask() for ask in questions] for questions in self.questions], [x.dtype for x in self.tensors]]

    def _types(self, modules: list[nn.Module]) -> list[type]:
        types = list(map(type, self.parts))
        for i, module in zip(self.root_indices, modules, strict=True):
            types[i] = type(module)
        return types

    def _changed(self) -> bool:
        """Whether a module has a hook or another forward, or a module that is no layer another method."""
        return (
            list(map(len, self.attributes)) != self.counts
            or any("forward" in own for own in self.layers)
            or any(not names.isdisjoint(methods) for names, methods in self.others)
            or global_hooks()
        )

    def unchanged(self, modules: list[nn.Module]) -> bool:
        """Whether these are the modules, with the same submodules and methods, and tensors at the same addresses."""
        return self._roots_are(modules) and same(self.found, self._found()) and self.unchanged_within(modules)

    def unchanged_within(self, modules: list[nn.Module]) -> bool:
        """`unchanged` for callers that have found all attributes of all modules to be the same objects."""
        return (
            self._roots_are(modules)
            and self._types(modules) == self.types
            and not self._changed()
            and not any(self.empty)
            and same(self.held, self._held())
            and self._answers() == self.answers
        )

    def _roots_are(self, modules: list[nn.Module]) -> bool:
        return len(modules) == len(self.roots) and all(
            root() is module for root, module in zip(self.roots, modules, strict=True)
        )


def module_tree(module: nn.Module) -> Iterator[nn.Module]:
    """Its modules, and those of the architecture that a `BatchedPolicy` keeps beside them."""
    yield from module.modules()
    if isinstance(module, BatchedPolicy):
        yield from module.template.modules()


def same(these: Collection[object], those: Collection[object]) -> bool:
    """Whether two collections hold the same objects in the same order."""
    return len(these) == len(those) and all(map(operator.is_, these, those))
