"""CUDA graphs of whole gradients: recorded once for given sizes and storages, replayed with one call.

A gradient with fused chains is still some hundred small operations (policy, reward, critic, contraction), whose dispatch costs
more than their work. None of them reads anything back, so all are recorded once. A graph reads parameters where they lie:
changes in place are seen; another storage, shape or structure is another key and a new recording.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jacrec.engine.jacobians.policy import has_written_jacobian
from jacrec.engine.problem import Problem
from jacrec.engine.types import PolicyGradient
from jacrec.kernels.store import LruStore
from jacrec.models.dynamics import ChainDynamics
from jacrec.models.networks import MLP, Denoiser, LayerNorm, RewardModel, TwinCritic, has_manual_derivatives
from jacrec.models.world import BatchedPolicy

MOST_GRAPHS = 16
"""recordings kept, the most recently used ones; each holds its own intermediate memory"""


def parts(p: Problem) -> list[nn.Module]:
    """Policy, dynamics, reward and critic, where they are modules."""
    return [x for x in (p.policy, p.world.dynamics, p.world.reward, p.world.critic) if isinstance(x, nn.Module)]


def recordable(p: Problem) -> bool:
    """Whether the whole problem is jacrec's own, on a GPU: a third-party module may synchronise, or keep state."""
    own = isinstance(p.world.dynamics, ChainDynamics) and type(p.world.reward) is RewardModel
    own = own and type(p.world.critic) is TwinCritic and has_written_jacobian(p.policy)
    return own and p.state.device.type == "cuda" and all(map(has_manual_derivatives, parts(p)[1:]))


def key(p: Problem, *options: Hashable) -> Hashable:
    """All that a recording depends on, except the values of tensors.

    Identities are valid while the objects live: a recording kept under this key keeps `parts(p)` too.
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


_RECORDINGS: LruStore[Recording] = LruStore(MOST_GRAPHS)


@torch.no_grad()
def replayed(p: Problem, prepare: Callable[[], Callable[[Problem], PolicyGradient]], *options: Hashable) -> PolicyGradient:
    """The gradient by its recording. If there is none yet, `prepare` checks the problem and returns what is to be recorded.

    options: what, beside the problem, decides what `prepare` returns. Recordings share fixed inputs: calls from several
    threads or streams at once need a lock around them.
    """
    own = key(p, *options)
    found = _RECORDINGS.get(own)
    if found is None:
        _RECORDINGS.make_room()  # a recording's memory is free before the next one is made
        template = p.policy.template if isinstance(p.policy, BatchedPolicy) else None
        found = record(p, prepare(), (*parts(p), template))
        _RECORDINGS.put(own, found)
    return found.replay(p)


def forget() -> None:
    """Free all recordings."""
    _RECORDINGS.clear()
