"""Modules as they were when a plan was made for them: compared at every use, so that a stale plan is never followed."""

import operator
from collections.abc import Collection, Iterator
from itertools import chain

from torch import Tensor, nn

from jacrec.models.networks import Affine, LayerNorm
from jacrec.models.world import BatchedPolicy

LAYER, MODULE = ("_parameters",), ("_modules", "_parameters", "_buffers")
"""where a layer, which has no parts, and any other module keep what is watched"""


class Watch:
    """The parts of some modules, which run their classes' forward, as they are now: classes, hooks, submodules, tensors and
    where they lie.

    What a plan reads besides, plain attributes, is the plan's own to compare.
    """

    def __init__(self, modules: list[nn.Module]):
        self.modules = modules
        parts = [part for module in modules for part in _tree(module)]
        self.parts = parts
        self.types = list(map(type, parts))
        self.attributes = [x.__dict__ for x in parts]
        self.places = [
            (own, name)
            for x, own in zip(parts, self.attributes, strict=True)
            for name in (LAYER if type(x) in (Affine, LayerNorm) else MODULE)
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

    def _changed(self) -> bool:
        """Whether a hook or a forward of its own has come to one of the modules."""
        return any(own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own for own in self.attributes)

    def _held(self) -> list[object]:
        return list(chain.from_iterable(map(dict.values, self.holders)))

    def _answers(self) -> list:
        return [*[[ask() for ask in questions] for questions in self.questions], [x.dtype for x in self.tensors]]

    def unchanged(self, modules: list[nn.Module]) -> bool:
        """Whether they still are those, with the same parts, at the same addresses."""
        return (
            same(self.modules, modules)
            and list(map(type, self.parts)) == self.types
            and not self._changed()
            and same(self.found, self._found())
            and not any(self.empty)
            and same(self.held, self._held())
            and self._answers() == self.answers
        )


def _tree(module: nn.Module) -> Iterator[nn.Module]:
    """Its modules, and those of the architecture that a `BatchedPolicy` keeps beside them."""
    yield from module.modules()
    if isinstance(module, BatchedPolicy):
        yield from module.template.modules()


def same(these: Collection[object], those: Collection[object]) -> bool:
    """Whether two collections hold the same objects in the same order."""
    return len(these) == len(those) and all(map(operator.is_, these, those))
