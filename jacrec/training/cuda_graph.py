"""Run a training step from a CUDA graph: one launch instead of hundreds.

A captured step must not synchronise with the device, allocate memory or read numbers from the host: rows are selected by
masks instead of indices, and changing learning rates are stored in tensors. GPU speed has not been measured.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Step = Callable[..., dict[str, Tensor]]


class CapturedStep:
    """`step(*inputs)` -> scalars, on copies of the inputs with fixed addresses; captured on a GPU, called directly on a CPU.

    Args:
        step: reads its inputs and changes state in place; every call performs the same operations on the same addresses.
        state: the tensors that it changes; they are restored after the warm-up runs before a capture.
    """

    def __init__(self, step: Step, state: Callable[[], Iterable[Tensor]]):
        self.step, self.state = step, state
        self.inputs: tuple[Tensor, ...] = ()
        self.scalars: dict[str, Tensor] = {}
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Run the step on inputs of the same shapes as in the first call. The next call overwrites the returned scalars."""
        if not self.inputs:
            self.inputs = tuple(x.clone() for x in inputs)
            if inputs[0].is_cuda:
                self._capture()
        for fixed, new in zip(self.inputs, inputs, strict=True):
            fixed.copy_(new)
        if self.graph is None:
            self.scalars = self.step(*self.inputs)
        else:
            self.graph.replay()
        return self.scalars

    def _capture(self) -> None:
        before = [(tensor, tensor.clone()) for tensor in self.state()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # the first calls initialise libraries, which cannot be captured
                self.step(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        for tensor, value in before:
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        # the thread that draws batches pins memory meanwhile, which in the default mode would end the capture
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.scalars = self.step(*self.inputs)
        self.graph = graph
