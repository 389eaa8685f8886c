"""What kernels assume about the modules of a problem, and why a module that is otherwise is refused: one list for both devices.

Compiled code knows a network by its sizes and flags, and its tensors by their addresses. Plain torch computes with whatever a
module has become by assignment; compiled code would ignore it, or read past a tensor that is smaller than assumed.
"""

from collections.abc import Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, nn

from jacrec.engine.jacobians.policy import PolicyNetwork, written_network
from jacrec.models.activations import ACTIVATIONS
from jacrec.models.dynamics import ChainDynamics, DeterministicDynamics, EnsembleDynamics, MultiStepDynamics
from jacrec.models.dynamics.chain import chain_reason
from jacrec.models.layers import settings_of
from jacrec.models.mlp import ParallelMLP
from jacrec.models.networks import (
    MLP,
    WRITTEN,
    Actor,
    RewardModel,
    TwinCritic,
    global_hooks,
    has_manual_derivatives,
    methods_of,
)
from jacrec.models.world import Anchor, BatchedPolicy, architecture_of

DYNAMICS_SCALES = ("state_mean", "state_std", "out_mean", "out_std")
REWARD_SCALES = ("state_mean", "state_std", "reward_mean", "reward_std")
DTYPES = (torch.float32, torch.float64)


def modified(name: str, module: object) -> str | None:
    """Why a module does not compute what its class does: hooks, a subclass within, or methods of an instance."""
    if has_manual_derivatives(module):
        return None
    if global_hooks():
        return f"{name}: expected no global module hooks, got some; remove them"
    what = " with hooks or changed parts" if type(module) in WRITTEN else ""
    replaced = methods_replaced(name, module) if isinstance(module, nn.Module) else None
    return replaced or f"{name}: expected an unmodified jacrec module, got {type(module).__name__}{what}"


def methods_replaced(name: str, module: nn.Module) -> str | None:
    """Why a module's methods are not all those of its class: an instance may have been given others."""
    parts: list[nn.Module | None] = [module]
    while parts:
        part = parts.pop()
        if part is None:
            continue
        own = methods_of(type(part))
        if not part.__dict__.keys().isdisjoint(own):
            names = ", ".join(sorted(own & part.__dict__.keys()))
            return f"{name}: expected the methods of {type(part).__name__}, got its own {names}"
        parts.extend(part._modules.values())
    return None


def dynamics_reason(f: Any, kinds: Sequence[type], like: Tensor) -> str | None:
    """Why dynamics are none of these kinds, or not what their attributes say, or not of `like`'s dtype and device."""
    if not isinstance(f, tuple(kinds)) or type(f) not in WRITTEN:
        served = sorted(x.__name__ for x in WRITTEN if issubclass(x, tuple(kinds)))
        return f"dynamics: expected an unmodified jacrec {', '.join(served[:-1])} or {served[-1]}, got {type(f).__name__}"
    d, m = f.state_dim, f.action_dim
    if type(d) is not int or type(m) is not int:
        return f"dynamics: expected integers as its state_dim and action_dim, got {d!r} and {m!r}; build it anew"
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(DYNAMICS_SCALES, (d,))
    inputs, outputs, stack, net = d + m, d, None, f._modules.get("mlp")
    reason = modified("dynamics", f)
    if reason is not None:
        return reason
    if isinstance(f, ChainDynamics):
        reason = chain_reason(f)
        if reason is not None:
            return reason
        inputs, net = 2 * d + m + f.denoiser.times * f.denoiser.embedding_dim, f.denoiser._modules.get("mlp")
    elif isinstance(f, EnsembleDynamics):
        outputs, stack = 2 * d, f.members
    elif isinstance(f, MultiStepDynamics):
        inputs, outputs = d + f.horizon * m + f.horizon, 2 * d if f.stochastic else d
        shapes |= dict.fromkeys(("out_mean", "out_std"), (f.horizon, d))
    return tensors_reason("dynamics", f, like, shapes) or network_reason("dynamics", net, inputs, outputs, like, stack=stack)


def times_reason(f: object) -> str | None:
    """Why a chain's tensor of times is not its tuple of times. Reads the tensor, so not for GPUs."""
    if isinstance(f, ChainDynamics) and f.time.tolist() != [list(t) if isinstance(t, tuple) else t for t in f.times]:
        return f"dynamics.time: expected the times {f.times}, got {f.time.tolist()}; use set_chain"
    return None


def policy_reason(policy: nn.Module, d: int, m: int, like: Tensor, *, bounded: bool = True) -> str | None:
    """Why a policy is no network d -> m, or no `BatchedPolicy` of one, as its attributes say.

    bounded: whether it has to end with tanh; an `Actor` does.
    """
    network = written_network(policy)
    if isinstance(network, str):
        what = f"expected an unmodified jacrec Actor, no parameter added or tied, got {type(policy).__name__}"
        why = "" if type(architecture_of(policy)) is Actor else f"; read by its layers: {network}"
        hooks = " and global module hooks" if global_hooks() else ""
        return methods_replaced("policy", policy) or f"policy: {what}{hooks}{why}"
    mlp, stack = network.mlp, None
    if network.layers is not None and not mlp.tanh_output and bounded:
        return "policy: expected a Tanh as its last layer, got none"
    if isinstance(policy, BatchedPolicy):
        stack = policy.n
        if network.layers is None:
            expected, got = architecture(cast(MLP, policy.template._modules["mlp"])), architecture(mlp)
            if got != expected:
                return f"policy: expected networks with the attributes of its template, {expected}, got {got}; make it anew"
    return network_reason("policy", mlp, d, m, like, stack=stack, tanh_output=network.layers is None or mlp.tanh_output)


def anchor_reason(anchor: Anchor, d: int, m: int, like: Tensor) -> str | None:
    """Why an anchor's policy is not an `Actor` (d -> m), as its attributes say."""
    reason = policy_reason(anchor.policy, d, m, like)
    return None if reason is None else f"anchor: {reason}"


def reward_reason(reward: object, d: int, m: int, like: Tensor) -> str | None:
    """Why a reward is not a `RewardModel` of d + m inputs, as its attributes say."""
    if type(reward) is not RewardModel:
        return f"reward: expected an unmodified jacrec RewardModel, got {type(reward).__name__}"
    own = cast(RewardModel, reward)
    shapes: dict[str, tuple[int, ...]] = {name: (d,) if name.startswith("state") else () for name in REWARD_SCALES}
    return (
        modified("reward", own)
        or tensors_reason("reward", own, like, shapes)
        or network_reason("reward", own._modules.get("mlp"), d + m, 1, like)
    )


def critic_reason(critic: object, d: int, m: int, like: Tensor) -> str | None:
    """Why a critic is not a `TwinCritic` of d + m inputs, as its attributes say."""
    if type(critic) is not TwinCritic:
        return f"critic: expected an unmodified jacrec TwinCritic, got {type(critic).__name__}"
    own = cast(TwinCritic, critic)
    mlp = own._modules.get("mlp")
    return modified("critic", own) or network_reason("critic", mlp, d + m, 1, like, stack=own.critics)


def network_reason(
    name: str,
    mlp: nn.Module | None,
    in_dim: int,
    out_dim: int,
    like: Tensor,
    *,
    stack: int | None = None,
    tanh_output: bool = False,
) -> str | None:
    """Why a network is not in_dim -> mlp.hidden -> out_dim with the activation of its name and tensors as `like`."""
    if not isinstance(mlp, MLP):
        return f"{name}: expected an MLP as mlp, got {type(mlp).__name__}"
    if isinstance(mlp, ParallelMLP):
        return _parallel_reason(name, mlp, in_dim, out_dim, like, stack)
    # not `is`: a deep copy of a network has its own
    if mlp.act != ACTIVATIONS.get(mlp.activation):
        return f"{name}: expected mlp.act to be the {mlp.activation!r} of mlp.activation, got {mlp.act}; build it with another"
    expected, got = (in_dim, out_dim, tanh_output), (mlp.in_dim, mlp.out_dim, mlp.tanh_output)
    if got != expected:
        return f"{name}: expected mlp with (in_dim, out_dim, tanh_output) = {expected}, got {got}"
    layers, norms, hidden = list(mlp.layers), list(mlp.norms), tuple(mlp.hidden)
    if len(layers) != len(hidden) + 1 or len(norms) not in (0, len(hidden)):
        return f"{name}: expected {len(hidden) + 1} layers, one LayerNorm less or none; got {len(layers)} and {len(norms)}"
    lead = () if stack is None else (stack,)
    for i, (fan_in, fan_out) in enumerate(pairwise((in_dim, *hidden, out_dim))):
        shapes = {"weight": (*lead, fan_out, fan_in), "bias": (*lead, fan_out)}
        reason = tensors_reason((name, "mlp.layers", i), layers[i], like, shapes)
        if reason is not None:
            return reason
    for i, norm in enumerate(norms):
        width = (*lead, hidden[i])
        reason = tensors_reason((name, "mlp.norms", i), norm, like, {"weight": width, "bias": width})
        if reason is not None:
            return reason
    found = [norm.eps for norm in norms]
    return None if len(set(found)) < 2 else f"{name}: expected one eps for all LayerNorms, got {found}"


def _parallel_reason(name: str, mlp: ParallelMLP, in_dim: int, out_dim: int, like: Tensor, stack: int | None) -> str | None:
    """Why some networks beside each other are not `stack` of one architecture."""
    networks = list(mlp.networks)
    if not len(networks) == mlp.stack == stack:
        return f"{name}: expected {stack} networks, got {len(networks)}"
    expected = _attributes(mlp)
    for network in networks:
        if _attributes(network) != expected or architecture(network) != architecture(networks[0]):
            return f"{name}: expected networks of one architecture, {expected}, got {architecture(network)}; make it anew"
        reason = network_reason(name, network, in_dim, out_dim, like)
        if reason is not None:
            return reason
    return None


def tensors_reason(name: str | tuple, module: nn.Module, like: Tensor, shapes: dict[str, tuple[int, ...]]) -> str | None:
    """Why a module's tensors are not of these shapes and of `like`'s dtype and device. name: its path, or the parts of it."""
    dtype, device = like.dtype, like.device
    for key, shape in shapes.items():
        # past `Module.__getattr__`, which costs as much as the rest: GPU kernels ask this at every decision
        value = module._parameters.get(key)
        value = module._buffers.get(key) if value is None else value
        if value is not None and value.shape == shape and value.dtype == dtype and value.device == device:
            continue
        what = f"{name if isinstance(name, str) else '.'.join(map(str, name))}.{key}"
        if value is None:
            return f"{what}: expected a registered parameter or buffer of shape {shape}, got none"
        got = tuple(value.shape)
        if got != shape:
            return f"{what}: expected shape {shape}, got {got}"
        return f"{what}: expected {dtype} on {device}, got {value.dtype} on {value.device}; use .to(...)"
    return None


def policy_network(policy: nn.Module) -> PolicyNetwork:
    """The network of a policy that `policy_reason` accepts."""
    found = written_network(policy)
    assert not isinstance(found, str), found
    return found


def architecture(net: MLP) -> tuple:
    """What a network's tensors do not say."""
    if type(net) is ParallelMLP:
        return *_attributes(net), net.stack, [architecture(one) for one in net.networks]
    return *_attributes(net), [norm.eps for norm in cast(Any, net._modules["norms"])._modules.values()]


_attributes = attrgetter("act", "activation", "hidden", "residual", "tanh_output", "in_dim", "out_dim")
_of_chain = attrgetter("target", "noises", "c_u", "c_net", "sigma", "times")
_of_denoiser = attrgetter("state_dim", "action_dim", "embedding_dim", "times")


def policy_settings(policy: nn.Module) -> list:
    """The plain attributes of a policy that kernels depend on."""
    if type(policy) is Actor:
        return [architecture(cast(MLP, policy._modules["mlp"]))]
    if not isinstance(policy, BatchedPolicy):
        return settings_of(policy)
    own = policy.template
    if type(own) is not Actor:
        return [*settings_of(own), policy.n]
    return [architecture(cast(MLP, part._modules["mlp"])) for part in (policy, own)] + [policy.n]


def world_settings(
    f: ChainDynamics | DeterministicDynamics | EnsembleDynamics | MultiStepDynamics,
    reward: RewardModel | None,
    critic: TwinCritic | None,
) -> list:
    """The plain attributes of a world's parts that kernels depend on; reward or critic None: they are not jacrec's."""
    own: list = [f.state_dim, f.action_dim, critic and critic.critics]
    # past `Module.__getattr__`, as in `tensors_reason`
    parts, time = f._modules, f._buffers.get("time")
    if isinstance(f, ChainDynamics):
        denoiser: Any = parts["denoiser"]
        target, noises, *tables = _of_chain(f)
        own += [target, noises, *map(tuple, tables), *_of_denoiser(denoiser), time is not None and time.tolist()]
        parts = denoiser._modules
    elif isinstance(f, MultiStepDynamics):
        own += [f.horizon, f.stochastic, f.sweeps]
    else:
        own.append(f.target)
        if isinstance(f, EnsembleDynamics):
            own.append(f.members)
    nets = parts["mlp"], reward and reward._modules["mlp"], critic and critic._modules["mlp"]
    return [*own, *[net and architecture(cast(MLP, net)) for net in nets]]
