"""A training step over inputs that stay where they are, so that a CUDA graph can hold it: one launch instead of hundreds.

What a graph holds must not ask the device for an answer, allocate anew or read numbers of the host: rows are chosen by
masks instead of indices, and learning rates and other rates that change live in tensors. Speed on a GPU: not measured.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Step = Callable[..., dict[str, Tensor]]


class CapturedStep:
    """`step(*inputs)` -> scalars, on copies of the inputs that keep their addresses; captured on a GPU, called on a CPU.

    Args:
        step: reads its inputs and changes state in place; every call does the same operations on the same addresses.
        state: the tensors that it changes; they are put back after the runs that a capture needs first.
    """

    def __init__(self, step: Step, state: Callable[[], Iterable[Tensor]]):
        self.step, self.state = step, state
        self.inputs: tuple[Tensor, ...] = ()
        self.scalars: dict[str, Tensor] = {}
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The step on these inputs, shaped as at the first call; the scalars are overwritten by the next one."""
        if not self.inputs:
            self.inputs = tuple(x.clone() for x in inputs)
            if inputs[0].is_cuda:
                self._capture()
        for kept, new in zip(self.inputs, inputs, strict=True):
            kept.copy_(new)
        if self.graph is None:
            self.scalars = self.step(*self.inputs)
        else:
            self.graph.replay()
        return self.scalars

    def _capture(self) -> None:
        before = [(tensor, tensor.clone()) for tensor in self.state()]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # libraries set themselves up at their first calls, which a graph cannot hold
                self.step(*self.inputs)
        torch.cuda.current_stream().wait_stream(aside)
        for tensor, value in before:
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.scalars = self.step(*self.inputs)
        self.graph = graph
