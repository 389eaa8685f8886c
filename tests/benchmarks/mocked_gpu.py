"""A GPU whose memory is the host's and whose kernels are interpreted, for rehearsing what only a machine with a GPU would run."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

from jacrec.training.cuda_graph import CapturedStep

GPU = torch.device("cuda", 0)


class OnHost(TorchFunctionMode):
    """Tensors asked for on "cuda" are made on the CPU; all say that they are on a GPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def here(x):
            return torch.device("cpu") if isinstance(x, str | torch.device) and str(x).startswith("cuda") else x

        if func == torch.Tensor.is_cuda.__get__:  # pyright: ignore
            return True
        if func == torch.Tensor.device.__get__:  # pyright: ignore
            return GPU
        if func == torch.device:
            return func(*args, **(kwargs or {}))
        return func(*map(here, args), **{name: here(x) for name, x in (kwargs or {}).items()})


class HostGenerator(torch.Generator):
    """A generator of the host that says it is the GPU's."""

    device = GPU

    def __new__(cls, device: object = GPU):
        return super().__new__(cls, "cpu")


def capture(step: CapturedStep) -> None:
    """Capture, which changes nothing on a GPU, and let replays run the step."""
    before = [(x, x.clone()) for x in step.state()]
    real_capture(step)
    for x, value in before:
        x.copy_(value)

    def replay() -> None:
        step.scalars = step.step(*step.inputs)

    step.graph.replay = replay  # pyright: ignore


real_capture = CapturedStep._capture


@contextmanager
def mocked_gpu() -> Iterator[SimpleNamespace]:
    """Within it, `torch.cuda` plays a GPU; counts recordings, replays and waits, and keeps capture modes."""
    from jacrec.kernels import graphs, launch, served

    seen = SimpleNamespace(recorded=0, replayed=0, waits=0, modes=set())

    def record(graph: object, capture_error_mode: str = "global"):
        seen.recorded += 1
        seen.modes.add(capture_error_mode)
        return nullcontext()

    def count(name: str):
        def call(*arguments, **options):
            setattr(seen, name, getattr(seen, name) + 1)
            return nullcontext()

        return call

    event = mock.MagicMock(**{"return_value.elapsed_time.return_value": 0.5})
    cuda = dict(
        is_available=lambda: True,
        device_count=lambda: 1,
        get_rng_state=lambda *_: torch.zeros(1, dtype=torch.uint8),
        set_rng_state=lambda *_: None,
        synchronize=count("waits"),
        device=lambda _: nullcontext(),
        device_of=lambda _: nullcontext(),
        Event=event,
        Stream=mock.MagicMock,
        stream=lambda _: nullcontext(),
        current_stream=mock.MagicMock(),
        graph=record,
        CUDAGraph=lambda: SimpleNamespace(replay=count("replayed")),
        memory_allocated=lambda: 1000,
        max_memory_allocated=lambda: 3000,
        reset_peak_memory_stats=lambda: None,
        memory_reserved=lambda: 2000,
        get_device_name=lambda *_: "a mocked GPU",
        get_device_capability=lambda *_: (9, 0),
        get_device_properties=lambda *_: SimpleNamespace(multi_processor_count=132),
    )
    with ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(torch.cuda, **cuda))
        stack.enter_context(mock.patch.object(torch, "Generator", HostGenerator))
        stack.enter_context(mock.patch.object(CapturedStep, "_capture", capture))
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", lambda self: self))
        for part in (launch, served):
            stack.enter_context(mock.patch.object(part, "interpreted", return_value=False))
        for kept in (launch.multiprocessors, launch._table, served.compute_capability):
            stack.callback(kept.cache_clear)
        stack.enter_context(OnHost())
        graphs.forget()
        yield seen
        graphs.forget()
