"""Modules as they were when a plan was made for them: compared at every use, so that a stale plan is never followed."""

import operator
from collections.abc import Collection, Iterator
from itertools import chain

from torch import Tensor, nn

from jacrec.networks import Affine, LayerNorm
from jacrec.world import BatchedPolicy


class Watch:
    """The parts of some modules as they are now: classes, submodules, tensors and where they lie; none has a hook.

    What a plan reads besides, plain attributes, is the plan's own to compare.
    """

    def __init__(self, modules: list[nn.Module]):
        self.modules = modules
        parts = [part for module in modules for part in _tree(module)]
        self.parts = parts
        self.types = list(map(type, parts))
        # a forward of its own would be one more entry in its __dict__; a layer has no parts, and none that came would be used
        owned = [[x.__dict__, x._parameters, x._forward_hooks, x._forward_pre_hooks] for x in parts]
        owned += [[x._modules, x._buffers] for x in parts if type(x) not in (Affine, LayerNorm)]
        self.places: list[dict] = list(chain.from_iterable(owned))
        self.lengths = list(map(len, self.places))
        self.holders: list[dict] = [held for x in parts for held in (x._modules, x._parameters, x._buffers) if held]
        self.held = self._held()
        tensors = [x for x in self.held if isinstance(x, Tensor)]
        self.questions = [[getattr(x, name) for x in tensors] for name in ("data_ptr", "size", "stride")]
        self.tensors = tensors
        self.answers = self._answers()

    def _held(self) -> list[object]:
        return list(chain.from_iterable(map(dict.values, self.holders)))

    def _answers(self) -> list:
        return [*[[ask() for ask in questions] for questions in self.questions], [x.dtype for x in self.tensors]]

    def unchanged(self, modules: list[nn.Module]) -> bool:
        """Whether they still are those, with the same parts, at the same addresses."""
        return (
            same(self.modules, modules)
            and list(map(type, self.parts)) == self.types
            and list(map(len, self.places)) == self.lengths
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
