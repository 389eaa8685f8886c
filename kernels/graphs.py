"""CUDA graphs of whole gradients: recorded once per sizes and storages, replayed with one call.

A gradient with fused chains is still some hundred small operations (policy, reward, critic, contraction), whose dispatch costs
more than their work. None of them reads anything back, so all are recorded once. A graph reads parameters where they lie:
changes in place are seen; another storage, shape or structure is another key and a new recording.
"""

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jacrec.engine.problem import Problem
from jacrec.engine.types import PolicyGradient
from jacrec.kernels import kept
from jacrec.kernels.store import LruStore
from jacrec.models.world import BatchedPolicy

MOST_GRAPHS = 16
"""recordings kept; the least recently used goes first"""
MOST_BYTES = 2 * 2**30
"""device memory that all recordings may hold together; the one used last is kept whatever it holds"""


class Recordings(LruStore[Any]):
    """The recordings used last, at most `limit` of them and at most `most_bytes` of memory; each has `bytes`."""

    def __init__(self, limit: int, most_bytes: int):
        super().__init__(limit)
        self.most_bytes = most_bytes

    def get_or_make(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The recording of `key`, made if there is none."""
        found = self.get(key)
        if found is None:
            # before the next one is made, so that its memory is free then
            self.make_room()
            found = make()
            self.put(key, found)
        return found

    def _shrink(self, limit: int) -> None:
        super()._shrink(limit)
        while len(self) > 1 and self.bytes > self.most_bytes:
            self.entries.popitem(last=False)

    @property
    def bytes(self) -> int:
        """Device memory held by all recordings."""
        return sum(entry.thing.bytes for entry in self.entries.values())


def recordable(p: Problem) -> bool:
    """Whether a problem's gradient can be recorded: all jacrec's own, on a GPU. Other modules may read back or have state."""
    return p.state.device.type == "cuda" and kept.facts(p) is not None


def key(p: Problem, *options: Hashable) -> Hashable:
    """All that a recording depends on, except the values of tensors.

    Identities count while the modules live: a recording kept under this key keeps them alive.
    """
    facts = kept.facts(p)
    assert facts is not None
    return (
        options,
        p.noise.shape,
        p.state.shape,
        p.single,
        p.batched,
        p.world.discount,
        p.state.dtype,
        p.state.device,
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        facts.structure,
    )


def flatten(result: PolicyGradient) -> Tensor:
    """Value and gradient, one behind the other in one vector."""
    return torch.cat([result.value.reshape(-1), *(g.reshape(-1) for g in result.gradient.values())])


class Place(NamedTuple):
    """Where a gradient by one parameter lies in a vector of all."""

    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


def places_of(p: Problem) -> dict[str, Place]:
    """The places of a gradient in a vector behind the value, by parameter."""
    found, offset = {}, p.N
    for name, parameter in p.policy.named_parameters():
        stride = torch.empty(parameter.shape, device="meta").stride()
        found[name] = Place(parameter.shape, stride, offset)
        offset += parameter.numel()
    return found


def unflatten(flat: Tensor, p: Problem, places: dict[str, Place]) -> PolicyGradient:
    """The `PolicyGradient` of `p` as views of a vector; a third of the time of `split` and `view`, in every decision."""
    value = flat.as_strided((), (), 0) if p.single else flat.as_strided((p.N,), (1,), 0)
    return PolicyGradient(value, {name: flat.as_strided(*place) for name, place in places.items()})


@dataclass
class Recording:
    """A gradient of one key, with inputs and output at fixed places."""

    graph: torch.cuda.CUDAGraph
    state: Tensor
    noise: Tensor
    flat: Tensor
    places: dict[str, Place]
    alive: tuple  # what the graph points into
    bytes: int
    """device memory of its private pool and inputs"""
    done: Any
    """the event that the last replay's output has been copied"""
    stream: Any = None
    """where it was replayed last"""

    def replay(self, p: Problem) -> PolicyGradient:
        """The gradient at the problem's state and noise, in memory of its own."""
        with torch.cuda.device(self.state.device):
            stream = torch.cuda.current_stream()
            if self.stream is not None and self.stream != stream:
                stream.wait_event(self.done)
            self.state.copy_(p.state)
            self.noise.copy_(p.noise)
            self.graph.replay()
            flat = self.flat.clone()
            self.done.record(stream)
            self.stream = stream
        return unflatten(flat, p, self.places)


def record(p: Problem, compute: Callable[[Problem], PolicyGradient], alive: tuple) -> Recording:
    """Record `compute` at the sizes of `p`.

    In the capture mode "thread_local": in the default mode, a call that cannot be captured (an allocation, a
    synchronisation) on any other thread would end the recording with an error.
    """
    state, noise = p.state.detach().clone(), p.noise.detach().clone(memory_format=torch.contiguous_format)
    fixed = Problem(p.policy, p.world, state, noise, p.single)
    with torch.cuda.device(state.device):
        # what compiles, allocates and caches on first use does so before recording, on a stream of its own as torch asks
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                flatten(compute(fixed))
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            before = torch.cuda.memory_reserved()  # the context begins by giving back what is cached
            flat = flatten(compute(fixed))
            pool = max(0, torch.cuda.memory_reserved() - before)
    held = sum(x.numel() * x.element_size() for x in (state, noise))
    return Recording(graph, state, noise, flat, places_of(p), alive, pool + held, torch.cuda.Event())


_RECORDINGS = Recordings(MOST_GRAPHS, MOST_BYTES)
_lock = threading.RLock()


@torch.no_grad()
def replayed(p: Problem, prepare: Callable[[], Callable[[Problem], PolicyGradient]], *options: Hashable) -> PolicyGradient:
    """The gradient by its recording. `prepare` is called where there is none yet, checks, and returns what is to be recorded.

    Recordings share fixed inputs: a lock and, across streams, an event let calls from several threads take turns.

    Args:
        options: what, beside the problem, decides what `prepare` returns.
    """
    with _lock:
        template = p.policy.template if isinstance(p.policy, BatchedPolicy) else None
        alive = (*kept.modules(p.policy, p.world), template)
        return _RECORDINGS.get_or_make(key(p, *options), lambda: record(p, prepare(), alive)).replay(p)


def forget() -> None:
    """Free all recordings."""
    with _lock:
        _RECORDINGS.clear()
