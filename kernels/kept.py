"""What is known about a policy and a world between calls: compared with the modules at every use, in a few list comparisons."""

from collections.abc import Hashable
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, nn

from jacrec.engine.jacobians.policy import has_written_jacobian
from jacrec.engine.problem import Problem
from jacrec.kernels import served
from jacrec.kernels.store import LruStore
from jacrec.kernels.watch import Watch, module_tree, same
from jacrec.models.dynamics import ChainDynamics
from jacrec.models.layers import SETTINGS
from jacrec.models.networks import MLP, Denoiser, LayerNorm, RewardModel, TwinCritic, has_manual_derivatives
from jacrec.models.world import World

MOST = 8
"""policies with their worlds that are kept, those used last; their modules stay in memory as long, or until `forget()`"""


def own(policy: object, world: World) -> bool:
    """Whether policy, dynamics, reward and critic are jacrec's own and unmodified, without an anchor."""
    written = world.anchor is None and isinstance(world.dynamics, ChainDynamics) and type(world.reward) is RewardModel
    written = written and type(world.critic) is TwinCritic and isinstance(policy, nn.Module) and has_written_jacobian(policy)
    return written and all(map(has_manual_derivatives, (world.dynamics, world.reward, world.critic)))


class Snapshot:
    """Modules as they are now: what `Watch` sees, and all plain attributes, with the contents of lists.

    Attributes are compared by identity; the values of tensors are not compared.
    """

    def __init__(self, modules: list[nn.Module]):
        self.modules, self.watch = modules, Watch(modules)
        self.dicts = [part.__dict__ for module in modules for part in module_tree(module)]
        self.attributes = self._attributes()
        self.lists = [(x, tuple(x)) for x in self.attributes if type(x) is list]
        self.children, self.devices = self._children(), self._devices()

    def _attributes(self) -> list[object]:
        return list(chain.from_iterable(map(dict.values, self.dicts)))

    def _children(self) -> list[int]:
        # `Watch` does not look for submodules of layers
        return [len(attributes["_modules"]) for attributes in self.dicts]

    def _devices(self) -> list[torch.device]:
        return [x.device for x in self.watch.tensors]

    def unchanged(self) -> bool:
        """Whether the modules still are as they were."""
        return (
            same(self.attributes, self._attributes())
            and self.watch.unchanged_within(self.modules)
            and all(tuple(now) == then for now, then in self.lists)
            and self._children() == self.children
            and self._devices() == self.devices
        )


class Structure:
    """What a recorded gradient depends on in its modules, besides the values of tensors; hashed once."""

    def __init__(self, values: Hashable):
        self.values, self.hash = values, hash(values)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Structure) and self.values == other.values)


def structure(modules: list[nn.Module]) -> Structure:
    """Identities, settings and tensor layouts. Identities count while the modules live: keep them with what is keyed by this."""
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
            elif type(x) in SETTINGS:
                settings.append(tuple(x.__dict__.get(name) for name in SETTINGS[type(x)]))
    layouts = tuple((t.data_ptr(), t.dtype, t.shape, t.stride()) for t in tensors)
    return Structure((tuple(map(id, modules)), layouts, tuple(settings)))


class Facts:
    """What was found out about one policy and world of jacrec's own modules, for states of one dtype, device and dimension."""

    def __init__(self, policy: nn.Module, world: World):
        self.modules = modules(policy, world)
        self.snapshot, self.structure = Snapshot(self.modules), structure(self.modules)
        self.reasons: dict[Hashable, str | None] = {}
        self.choices: dict = {}
        """by sizes: what `jacrec.kernels.automatic` chose"""

    def unsupported_reason(self, p: Problem) -> str | None:
        """`served.unsupported_reason`, computed once for inputs of the same layout."""
        state, noise = p.state, p.noise
        layout = (state.shape, state.dtype, state.device, noise.shape, noise.dtype, noise.device)
        if layout not in self.reasons:
            if len(self.reasons) >= 256:
                self.reasons.clear()
            self.reasons[layout] = served.unsupported_reason(p)
        return self.reasons[layout]


def modules(policy: nn.Module, world: World) -> list[nn.Module]:
    """Policy, dynamics, reward and critic, where they are modules."""
    return [x for x in (policy, world.dynamics, world.reward, world.critic) if isinstance(x, nn.Module)]


_facts: LruStore[Facts] = LruStore(MOST)


def _key(policy: nn.Module, world: World, state: Tensor) -> Hashable:
    return id(policy), id(world.dynamics), id(world.reward), id(world.critic), state.dtype, state.device, state.shape[-1]


def kept_plan(policy: nn.Module, world: World, state: Tensor) -> Facts | None:
    """What is known about a policy and a world that have not changed since; None if nothing is, or with an anchor."""
    if world.anchor is not None:
        return None
    found = _facts.get(_key(policy, world, state))
    return found if found is not None and found.snapshot.unchanged() else None


def facts(p: Problem) -> Facts | None:
    """What is known about a problem's parts; None where some are not jacrec's own."""
    if isinstance(p.plan, Facts):
        return p.plan
    found = kept_plan(p.policy, p.world, p.state)
    if found is None and own(p.policy, p.world):
        found = Facts(p.policy, p.world)
        _facts.put(_key(p.policy, p.world, p.state), found)
    return found


def examined(p: Problem) -> Problem:
    """The problem with what is known about its parts as its plan: compared with them now, and not again in this call."""
    found = facts(p)
    return p if found is None or found is p.plan else replace(p, plan=found)


def forget() -> None:
    """Keep nothing."""
    _facts.clear()
