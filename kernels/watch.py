"""Detects changes of modules since a plan was made for them: compared at every use, so that a stale plan is never followed."""

import operator
import weakref
from collections.abc import Collection, Iterator
from itertools import chain, repeat

from torch import Tensor, nn

from jacrec.models.networks import HOOKS, Affine, LayerNorm, global_hooks, methods_of
from jacrec.models.world import BatchedPolicy

LAYER, MODULE = ("_parameters",), ("_modules", "_parameters", "_buffers")
"""where a layer, which has no submodules, and any other module keep what is watched"""
QUESTIONS = Tensor.data_ptr, operator.attrgetter("shape"), Tensor.stride, operator.attrgetter("dtype")
"""what is asked of every tensor, by functions of torch's: `map` needs no step of the interpreter for each"""
hooks_of = operator.itemgetter(*HOOKS)


class Watch:
    """The state of some modules: classes, methods, hooks, submodules, tensors and their addresses.

    The modules themselves are referred to weakly, their submodules and tensors strongly. Plain attributes that a plan
    depends on are compared by the plan.
    """

    def __init__(self, modules: list[nn.Module]):
        self.roots = [weakref.ref(module) for module in modules]
        parts = [part for module in modules for part in module_tree(module)]
        layers = [x for x in parts if type(x) in (Affine, LayerNorm)]
        others = [x for x in parts if type(x) not in (Affine, LayerNorm)]
        self.parts = [x for x in parts if not any(x is module for module in modules)]
        self.types = list(map(type, (*modules, *self.parts)))
        self.attributes = [x.__dict__ for x in parts]
        self.layers, self.others = ([x.__dict__ for x in kind] for kind in (layers, others))
        self.counts, self.names = list(map(len, self.layers)), list(map(list, self.others))
        self.own_methods = any(
            not own.keys().isdisjoint(methods_of(type(x))) for x, own in zip(others, self.others, strict=True)
        )
        """whether a module that is no layer had one when it was looked at: then nothing is ever found unchanged"""
        places = [(x.__dict__, name) for x in parts for name in (LAYER if type(x) in (Affine, LayerNorm) else MODULE)]
        self.owners, self.keys = [own for own, _ in places], [name for _, name in places]
        self.tables = self._tables()
        self.hooks = self._hooks()
        self.empty = [table for table in (*self.tables, *chain.from_iterable(self.hooks)) if not table]
        self.filled = [table for x in parts for table in (x._modules, x._parameters, x._buffers) if table]
        self.held = self._held()
        self.tensors = [x for x in self.held if isinstance(x, Tensor)]
        known: dict = {}
        self.answers = [[known.setdefault(x, x) for x in answers] for answers in self._answers()]

    def _tables(self) -> list[dict]:
        return list(map(operator.getitem, self.owners, self.keys))

    def _hooks(self) -> list[tuple[dict, ...]]:
        return list(map(hooks_of, self.attributes))

    def _held(self) -> list[object]:
        return list(chain.from_iterable(map(dict.values, self.filled)))

    def _answers(self) -> list[list]:
        return [list(map(ask, self.tensors)) for ask in QUESTIONS]

    def _changed(self) -> bool:
        """Whether a module has a hook or another forward, or a module that is no layer other attributes or a method of its own."""
        return (
            self._hooks() != self.hooks
            or list(map(len, self.layers)) != self.counts
            or any(map(operator.contains, self.layers, repeat("forward")))
            or list(map(list, self.others)) != self.names
            or self.own_methods
            or global_hooks()
        )

    def unchanged(self, modules: list[nn.Module]) -> bool:
        """Whether these are the modules, with the same submodules and methods, and tensors at the same addresses."""
        return self._roots_are(modules) and same(self.tables, self._tables()) and self.unchanged_within(modules)

    def unchanged_within(self, modules: list[nn.Module]) -> bool:
        """`unchanged` for callers that have found all attributes of all modules to be the same objects."""
        return (
            self._roots_are(modules)
            and list(map(type, (*modules, *self.parts))) == self.types
            and not self._changed()
            and not any(self.empty)
            and same(self.held, self._held())
            and self._answers() == self.answers
        )

    def _roots_are(self, modules: list[nn.Module]) -> bool:
        return same([root() for root in self.roots], modules)


def module_tree(module: nn.Module) -> Iterator[nn.Module]:
    """Its modules, and those of the architecture that a `BatchedPolicy` keeps beside them."""
    yield from module.modules()
    if isinstance(module, BatchedPolicy):
        yield from module.template.modules()


def same(these: Collection[object], those: Collection[object]) -> bool:
    """Whether two collections hold the same objects in the same order."""
    return len(these) == len(those) and all(map(operator.is_, these, those))
