"""CUDA graphs of whole gradients: recorded once per sizes and storages, replayed with one call.

A gradient with fused chains is still some hundred small operations (policy, reward, critic, contraction), whose dispatch costs
more than their work. None of them reads anything back, so all are recorded once. A graph reads parameters where they lie:
changes in place are seen; another storage, shape or structure is another key and a new recording.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from jacrec.engine.jacobians.policy import has_written_jacobian
from jacrec.engine.problem import Problem
from jacrec.engine.types import PolicyGradient
from jacrec.models.dynamics import ChainDynamics
from jacrec.models.networks import MLP, Denoiser, LayerNorm, RewardModel, TwinCritic, has_manual_derivatives
from jacrec.models.world import BatchedPolicy

MOST_GRAPHS = 16
"""recordings kept; the least recently used goes first. Each holds its own intermediate memory"""

Entry = TypeVar("Entry")


class Recent(Generic[Entry]):
    """The `most` recently used entries by key."""

    def __init__(self, most: int):
        self.most = most
        self.entries: OrderedDict[Hashable, Entry] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Entry]) -> Entry:
        """The entry of `key`, made if there is none."""
        if key not in self.entries:
            # the oldest goes first: a recording's memory is free before the next one is made
            while len(self.entries) >= self.most:
                self.entries.popitem(last=False)
            self.entries[key] = make()
        self.entries.move_to_end(key)
        return self.entries[key]


def parts(p: Problem) -> list[nn.Module]:
    """Policy, dynamics, reward and critic, where they are modules."""
    return [x for x in (p.policy, p.world.dynamics, p.world.reward, p.world.critic) if isinstance(x, nn.Module)]


def recordable(p: Problem) -> bool:
    """Whether all of the problem is jacrec's own, on a GPU: a stranger's module may read back, or keep state of its own."""
    own = isinstance(p.world.dynamics, ChainDynamics) and type(p.world.reward) is RewardModel
    own = own and type(p.world.critic) is TwinCritic and has_written_jacobian(p.policy)
    return own and p.state.device.type == "cuda" and all(map(has_manual_derivatives, parts(p)[1:]))


def key(p: Problem, *options: Hashable) -> Hashable:
    """All that a recording depends on, except the values of tensors.

    Identities count while the objects live: whoever keeps a recording under this key keeps `parts(p)` too.
    """
    modules = parts(p)
    tensors, settings = [], []
    for part in modules:
        for x in part.modules():
            tensors += [t for t in (*x._parameters.values(), *x._buffers.values()) if t is not None]
            if isinstance(x, MLP):
                settings.append((x.hidden, x.activation, x.act, x.residual, x.tanh_output, x.stack, len(x.norms)))
            elif isinstance(x, LayerNorm):
                settings.append((x.eps,))
            elif isinstance(x, ChainDynamics):
                settings.append((x.target, x.times, *x.c_u, *x.c_net, *x.sigma, x.noises))
            elif isinstance(x, Denoiser):
                settings.append((x.embedding_dim, x.times))
            elif isinstance(x, TwinCritic):
                settings.append((x.critics,))
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
        tuple(map(id, modules)),
        tuple((t.data_ptr(), t.dtype, t.shape, t.stride()) for t in tensors),
        tuple(settings),
    )


def flatten(result: PolicyGradient) -> Tensor:
    """Value and gradient, one behind the other in one vector."""
    return torch.cat([result.value.reshape(-1), *(g.reshape(-1) for g in result.gradient.values())])


def unflatten(flat: Tensor, p: Problem) -> PolicyGradient:
    """The `PolicyGradient` of `p` as views of a vector."""
    shapes = {name: parameter.shape for name, parameter in p.policy.named_parameters()}
    value, *pieces = flat.split([p.N, *(shape.numel() for shape in shapes.values())])
    gradient = {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
    return PolicyGradient(value.squeeze(0) if p.single else value, gradient)


@dataclass
class Recording:
    """A gradient of one key, with inputs and output at fixed places."""

    graph: torch.cuda.CUDAGraph
    state: Tensor
    noise: Tensor
    flat: Tensor
    alive: tuple  # what the graph points into

    def replay(self, p: Problem) -> PolicyGradient:
        """The gradient at the problem's state and noise, in memory of its own."""
        self.state.copy_(p.state)
        self.noise.copy_(p.noise)
        self.graph.replay()
        return unflatten(self.flat.clone(), p)


def record(p: Problem, compute: Callable[[Problem], PolicyGradient], alive: tuple) -> Recording:
    """Record `compute` at the sizes of `p`."""
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
        with torch.cuda.graph(graph):
            flat = flatten(compute(fixed))
    return Recording(graph, state, noise, flat, alive)


_RECORDINGS: Recent[Recording] = Recent(MOST_GRAPHS)


@torch.no_grad()
def replayed(p: Problem, prepare: Callable[[], Callable[[Problem], PolicyGradient]], *options: Hashable) -> PolicyGradient:
    """The gradient by its recording. `prepare` is called where there is none yet, checks, and returns what is to be recorded.

    options: what, beside the problem, decides what `prepare` returns. Recordings share fixed inputs: calls from several
    threads or streams at once need a lock around them.
    """
    template = p.policy.template if isinstance(p.policy, BatchedPolicy) else None
    return _RECORDINGS.get(key(p, *options), lambda: record(p, prepare(), (*parts(p), template))).replay(p)


def forget() -> None:
    """Free all recordings."""
    _RECORDINGS.entries.clear()
