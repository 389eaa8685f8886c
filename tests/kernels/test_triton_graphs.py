"""What a CUDA graph asks of a gradient that it records: nothing is read back, no history is kept. Without a GPU, too."""

import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from jacrec.engine.shapes import problem
from jacrec.kernels import gradient, graphs, rollout
from jacrec.kernels.launch import Tile
from tests.oracles import relative_error
from tests.triton_cases import imagine

aten = torch.ops.aten
WAITS = {aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten._unique2}
"""operations whose result, or its size, the host waits for"""


class Unrecordable(Exception):
    """An operation that no graph can hold."""


class Recorded(TorchDispatchMode):
    """Raises on what a recording on a GPU could not hold: reads, and copies between host and device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket
        if name in WAITS:
            raise Unrecordable(f"{func} waits for the device")
        if name is aten.lift_fresh:
            raise Unrecordable(f"{func}: numbers of the host become a tensor")
        if name is aten._to_copy and kwargs.get("device", args[0].device) != args[0].device:
            raise Unrecordable(f"{func} goes from {args[0].device} to {kwargs['device']}")
        if name is aten.copy_ and args[0].device != args[1].device:
            raise Unrecordable(f"{func} goes from {args[1].device} to {args[0].device}")
        if name is aten.index and any(i is not None and i.dtype == torch.bool for i in args[1]):
            raise Unrecordable(f"{func} waits for the number of a mask's entries")
        return func(*args, **kwargs)


class Unread(TorchFunctionMode):
    """Raises on what the host reads without an operation where tensors are its own already."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__):
            raise Unrecordable(f"{func.__name__} reads a tensor")
        return func(*args, **(kwargs or {}))


FORMS = {
    "rollout": lambda p: rollout.rollout_gradient(p, tile=Tile(16, 16, 16, 4, 2)),
    "forward": gradient.forward_gradient,
    "adjoint": gradient.adjoint_gradient,
    "recompute": lambda p: gradient.adjoint_gradient(p, recompute=True),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batched", [False, True])
def test_nothing_is_read_back_after_the_first_call(form, batched):
    p = problem(*imagine(2, 2, 2, batched, dict(hidden=(7, 7), layer_norm=True), 0))
    with mock.patch.object(gradient, "worthwhile", return_value=False):
        first = FORMS[form](p)
        with Unread(), Recorded():
            again = FORMS[form](p)
    assert relative_error(again.gradient, first.gradient) == 0.0


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: float(x[0]),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: torch.tensor([1.0]),
        lambda x: x.to("meta"),
        lambda x: torch.empty_like(x, device="meta").copy_(x),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
    ],
)
def test_the_judge_sees_what_cannot_be_recorded(operation):
    x = torch.ones(3)
    with Unread(), Recorded():
        x.double().add_(1)
        with pytest.raises(Unrecordable):
            operation(x)


class Event:
    """A CUDA event that tells what was asked of it."""

    def __init__(self):
        self.recorded = []

    def record(self, stream):
        self.recorded.append(stream)


@pytest.fixture
def replaying():
    """torch.cuda's graphs as far as a host can play them: recording computes, replaying changes nothing."""
    modes, reserved = [], iter(range(0, 10**6, 1000))
    cuda = dict(
        device=lambda _: nullcontext(),
        Stream=mock.MagicMock,
        Event=Event,
        stream=lambda _: nullcontext(),
        current_stream=mock.MagicMock(),
        memory_reserved=lambda: next(reserved),
        CUDAGraph=lambda: SimpleNamespace(replay=lambda: None),
        graph=lambda _, capture_error_mode="global": modes.append(capture_error_mode) or nullcontext(),
    )
    with mock.patch.multiple(torch.cuda, **cuda), mock.patch.object(graphs, "recordable", return_value=True):
        graphs.forget()
        yield modes
        graphs.forget()


def test_inputs_with_a_history_leave_none_in_a_recording(replaying):
    policy, world, state, noise = imagine(1, 2, 1, False, dict(hidden=(7,)), 0)
    exact = gradient.forward_gradient(problem(policy, world, state, noise))
    graphs.forget()
    state, noise = state.requires_grad_() * 1.0, noise.requires_grad_() * 1.0
    for change in range(3):
        got = gradient.forward_gradient(problem(policy, world, state, noise))
        recording = next(iter(graphs._RECORDINGS.entries.values())).thing
        assert len(graphs._RECORDINGS) == 1
        for tensor in (recording.state, recording.noise, recording.flat, got.value, *got.gradient.values()):
            assert tensor.grad_fn is None
            assert not tensor.requires_grad
        assert relative_error(got.gradient, exact.gradient) == 0.0
        assert torch.equal(recording.state, state)
        state = state + 0.1 * change
    # what the inputs came from can still be differentiated
    state.sum().backward()


def test_recording_survives_other_threads_and_holds_counted_memory(replaying):
    p = problem(*imagine(1, 2, 1, False, dict(hidden=(7,)), 0))
    gradient.forward_gradient(p)
    assert replaying == ["thread_local"]
    recording = next(iter(graphs._RECORDINGS.entries.values())).thing
    assert len(graphs._RECORDINGS) == 1
    assert recording.bytes == 1000 + 8 * (p.state.numel() + p.noise.numel())


def test_a_replay_on_another_stream_waits_for_the_last(replaying):
    p = problem(*imagine(1, 2, 1, False, dict(hidden=(7,)), 0))
    first, second = mock.MagicMock(), mock.MagicMock()
    for stream in (first, first, second):
        torch.cuda.current_stream.return_value = stream
        gradient.forward_gradient(p)
    recording = next(iter(graphs._RECORDINGS.entries.values())).thing
    assert len(graphs._RECORDINGS) == 1
    assert recording.done.recorded == [first, first, second]
    assert not first.wait_event.called
    second.wait_event.assert_called_once_with(recording.done)


def test_threads_take_turns_with_a_recording(replaying):
    policy, world, state, noise = imagine(1, 2, 1, False, dict(hidden=(7,)), 0)
    p = problem(policy, world, state, noise)
    gradient.forward_gradient(p)
    recording = next(iter(graphs._RECORDINGS.entries.values())).thing
    assert len(graphs._RECORDINGS) == 1
    inside, most = [], []

    def replay():
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.002)
        inside.pop()

    recording.graph.replay = replay
    threads = [threading.Thread(target=lambda: [gradient.forward_gradient(p) for _ in range(5)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20
