"""Modules as they were when a plan was made for them: compared at every use, so that a stale plan is never followed."""

import operator
from collections.abc import Collection, Iterator
from itertools import chain
from operator import itemgetter

from torch import Tensor, nn

from jacrec.networks import Affine, LayerNorm
from jacrec.world import BatchedPolicy

LAYER = itemgetter("_parameters", "_forward_hooks", "_forward_pre_hooks")
MODULE = itemgetter("_parameters", "_forward_hooks", "_forward_pre_hooks", "_modules", "_buffers")
"""where a module keeps what is watched"""


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
        # a layer has no parts, and none that came would be used
        self.names = [LAYER if type(x) in (Affine, LayerNorm) else MODULE for x in parts]
        self.places = self._places()
        self.lengths = list(map(len, self.places))
        self.holders: list[dict] = [held for x in parts for held in (x._modules, x._parameters, x._buffers) if held]
        self.held = self._held()
        tensors = [x for x in self.held if isinstance(x, Tensor)]
        self.questions = [[getattr(x, name) for x in tensors] for name in ("data_ptr", "size", "stride")]
        self.tensors = tensors
        self.answers = self._answers()

    def _places(self) -> list[dict]:
        return list(chain.from_iterable([ask(own) for ask, own in zip(self.names, self.attributes, strict=True)]))

    def _held(self) -> list[object]:
        return list(chain.from_iterable(map(dict.values, self.holders)))

    def _answers(self) -> list:
        return [*[[ask() for ask in questions] for questions in self.questions], [x.dtype for x in self.tensors]]

    def unchanged(self, modules: list[nn.Module]) -> bool:
        """Whether they still are those, with the same parts, at the same addresses."""
        return (
            same(self.modules, modules)
            and list(map(type, self.parts)) == self.types
            and same(self.places, self._places())
            and list(map(len, self.places)) == self.lengths
            and not any("forward" in own for own in self.attributes)
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
