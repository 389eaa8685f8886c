"""Whether the kernels can serve: what they are compiled for is read off attributes, so these must describe the modules truly.

A launch knows a network by its `hidden`, `activation` and one LayerNorm ε, and its tensors by their addresses. Whatever else
a module may have become by assignment (another activation, another shape, a scale of one number, a method of its own) is
refused here with its reason, and the arguments of a chain are checked before their addresses are read.
"""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from jacrec.engine.jacobians.policy import has_written_jacobian
from jacrec.engine.problem import Problem
from jacrec.kernels.launch import interpreted
from jacrec.models.activations import ACTIVATIONS
from jacrec.models.dynamics import ChainDynamics
from jacrec.models.networks import MLP, WRITTEN, RewardModel, TwinCritic, has_manual_derivatives
from jacrec.models.world import BatchedPolicy

MAX_WIDTH, MAX_DEPTH, MAX_STATE, MAX_ACTION = 1024, 6, 64, 32
DYNAMICS_SCALES = ("state_mean", "state_std", "out_mean", "out_std")


def unsupported_reason(subject: object) -> str | None:
    """Why the kernels cannot serve a `Problem` or dynamics, what was expected and what came; None if they can.

    A stranger's policy, reward or critic is served beside the chains, by torch; jacrec's own must be what they say.
    """
    dynamics = subject.world.dynamics if isinstance(subject, Problem) else subject
    if not isinstance(dynamics, ChainDynamics) or not has_manual_derivatives(dynamics):
        return (
            f"dynamics: expected an unmodified jacrec DiffusionDynamics, FlowDynamics or MeanFlowDynamics, got "
            f"{type(dynamics).__name__}{' with hooks or changed parts' if type(dynamics) in WRITTEN else ''}"
        )
    reason = chain_unserved(dynamics)
    if reason is None and isinstance(subject, Problem):
        reason = inputs_unserved(subject, dynamics) or parts_unserved(subject, dynamics)
    return reason or device_unserved(dynamics.out_std.device)


def require_supported(subject: object) -> None:
    """ValueError with `unsupported_reason`'s reason."""
    reason = unsupported_reason(subject)
    if reason is not None:
        raise ValueError(f"{reason}; or use the plain twin, jacrec.engine.jacobians.chain")


def chain_unserved(f: ChainDynamics) -> str | None:
    """Why the chain of unmodified classes is too large, or not what its attributes say."""
    mlp, d, m = f.denoiser.mlp, f.state_dim, f.action_dim
    for what, got, most in (
        ("state dimension", d, MAX_STATE),
        ("action dimension", m, MAX_ACTION),
        ("hidden width", max(mlp.hidden), MAX_WIDTH),
        ("number of hidden layers", len(mlp.hidden), MAX_DEPTH),
    ):
        if got > most:
            return f"dynamics: expected a {what} of at most {most}, got {got}"
    if f.noises not in (1, f.diffusion_steps + 1) or (f.noises == 1 and any(f.sigma)):
        return f"dynamics: expected {f.diffusion_steps + 1} rows of noise, or 1 where σ is 0, got {f.noises}"
    if f.keep is not None:
        return "dynamics: expected a sampler of first order, got one that looks back (solver 'heun')"
    lengths = [len(x) for x in (f.times, f.c_u, f.c_net, f.sigma)]
    if lengths != [f.diffusion_steps] * 4:
        return f"dynamics: expected {f.diffusion_steps} entries in each of times, c_u, c_net and sigma, got {lengths}"
    like = f.out_std
    if like.dtype not in (torch.float32, torch.float64):
        return f"dynamics: expected float32 or float64, got {like.dtype}; use .to(dtype)"
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(DYNAMICS_SCALES, (d,))
    return (
        changed("dynamics", f, like, shapes)
        or network_changed("dynamics", mlp, 2 * d + m + f.denoiser.times * f.denoiser.embedding_dim, d, like)
        or own_methods("dynamics", f)
    )


def inputs_unserved(p: Problem, f: ChainDynamics) -> str | None:
    """Why a problem's state and noise are not those of its dynamics."""
    try:
        fitting(f.out_std, {"state": (p.state, ("N", f.state_dim)), "noise": (p.noise, ("N", "M", "H", f.noises, f.state_dim))})
    except ValueError as error:
        return str(error)
    return None


def parts_unserved(p: Problem, f: ChainDynamics) -> str | None:
    """Why jacrec's own among policy, reward and critic are not what their attributes say."""
    like, d, m = p.state, f.state_dim, f.action_dim
    policy, reward, critic = p.policy, p.world.reward, p.world.critic
    reason = None
    if has_written_jacobian(policy):
        mlp = cast(MLP, policy._modules["mlp"])
        stack = policy.n if isinstance(policy, BatchedPolicy) else None
        reason = network_changed("policy", mlp, d, m, like, stack=stack, tanh_output=True) or own_methods("policy", policy)
    if reason is None and type(reward) is RewardModel and has_manual_derivatives(reward):
        reward = cast(RewardModel, reward)
        shapes: dict[str, tuple[int, ...]] = {"state_mean": (d,), "state_std": (d,), "reward_mean": (), "reward_std": ()}
        reason = changed("reward", reward, like, shapes) or network_changed("reward", reward.mlp, d + m, 1, like)
        reason = reason or own_methods("reward", reward)
    if reason is None and type(critic) is TwinCritic and has_manual_derivatives(critic):
        critic = cast(TwinCritic, critic)
        reason = network_changed("critic", critic.mlp, d + m, 1, like, stack=critic.critics) or own_methods("critic", critic)
    return reason


def network_changed(
    name: str, mlp: MLP, in_dim: int, out_dim: int, like: Tensor, *, stack: int | None = None, tanh_output: bool = False
) -> str | None:
    """Why a network is not in_dim -> mlp.hidden -> out_dim with the activation of its name, one ε, and tensors as `like`."""
    # not `is`: a copied network has copied it
    if mlp.act != ACTIVATIONS.get(mlp.activation):
        return f"{name}: expected mlp.act to be the {mlp.activation!r} of mlp.activation, got {mlp.act}; build it with another"
    expected, got = (in_dim, out_dim, tanh_output), (mlp.in_dim, mlp.out_dim, mlp.tanh_output)
    if got != expected:
        return f"{name}: expected mlp with (in_dim, out_dim, tanh_output) = {expected}, got {got}"
    layers, norms = list(mlp.layers), list(mlp.norms)
    if len(layers) != len(mlp.hidden) + 1 or len(norms) not in (0, len(mlp.hidden)):
        return f"{name}: expected {len(mlp.hidden) + 1} layers, one LayerNorm less or none; got {len(layers)} and {len(norms)}"
    lead = () if stack is None else (stack,)
    for i, (fan_in, fan_out) in enumerate(pairwise((in_dim, *mlp.hidden, out_dim))):
        shapes = {"weight": (*lead, fan_out, fan_in), "bias": (*lead, fan_out)}
        reason = changed((name, "mlp.layers", i), layers[i], like, shapes)
        if reason is not None:
            return reason
    for i, norm in enumerate(norms):
        width = (*lead, mlp.hidden[i])
        reason = changed((name, "mlp.norms", i), norm, like, {"weight": width, "bias": width})
        if reason is not None:
            return reason
    eps = [norm.eps for norm in norms]
    return None if len(set(eps)) < 2 else f"{name}: expected one eps for all LayerNorms, got {eps}"


def changed(name: str | tuple, module: nn.Module, like: Tensor, shapes: dict[str, tuple[int, ...]]) -> str | None:
    """Why a module's tensors are not of these shapes and of `like`'s dtype and device. name: its path, or the parts of it."""
    dtype, device = like.dtype, like.device
    for key, shape in shapes.items():
        # past `Module.__getattr__`, which costs as much as the rest: this is asked at every decision
        value = module._parameters.get(key)
        value = getattr(module, key) if value is None else value
        if isinstance(value, Tensor) and value.shape == shape and value.dtype == dtype and value.device == device:
            continue
        what = f"{name if isinstance(name, str) else '.'.join(map(str, name))}.{key}"
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if got != shape:
            return f"{what}: expected shape {shape}, got {got}"
        return f"{what}: expected {dtype} on {device}, got {value.dtype} on {value.device}; use .to(...)"
    return None


def own_methods(name: str, module: nn.Module) -> str | None:
    """Why a module's methods are not all those of its class: an instance may have been given others."""
    parts: list[nn.Module | None] = [module]
    while parts:
        part = parts.pop()
        if part is None:
            continue
        if not _methods(type(part)).isdisjoint(part.__dict__):
            own = ", ".join(sorted(_methods(type(part)) & part.__dict__.keys()))
            return f"{name}: expected the methods of {type(part).__name__}, got its own {own}"
        parts.extend(part._modules.values())
    return None


@cache
def _methods(kind: type) -> frozenset[str]:
    return frozenset(name for name in dir(kind) if callable(getattr(kind, name)))


def device_unserved(device: torch.device) -> str | None:
    """Why the kernels cannot run on a device."""
    if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
        return (
            f"device: expected cuda, got {device.type}; move policy, world, state and noise with .to('cuda') "
            "(TRITON_INTERPRET=1 interprets the kernels on a CPU, for tests)"
        )
    if device.type == "cuda" and interpreted():
        return "device: the kernels were imported with TRITON_INTERPRET=1, which is for CPU tensors; unset it"
    return gpu_unserved(device) if device.type == "cuda" else None


LEAST_CAPABILITY = (8, 0)
"""Ampere, the first whose tensor cores multiply TF32 and float64"""


def gpu_unserved(device: torch.device) -> str | None:
    """Why the kernels cannot run on a GPU: ROCm, or too old."""
    if torch.version.hip is not None:
        return f"device: expected an NVIDIA GPU, got one of ROCm {torch.version.hip}, for which the kernels are not tested"
    found = compute_capability(device)
    if found < LEAST_CAPABILITY:
        least, got = (".".join(map(str, x)) for x in (LEAST_CAPABILITY, found))
        return f"device: expected a compute capability of at least {least}, got {got} ({torch.cuda.get_device_name(device)})"
    return None


@cache
def compute_capability(device: torch.device) -> tuple[int, int]:
    """A GPU's compute capability, asked for once."""
    return torch.cuda.get_device_capability(device)


def fitting(like: Tensor, arguments: dict[str, tuple[object, Sequence[int | str]]]) -> dict[str, int]:
    """The sizes that letters stand for in arguments {name: (value, shape)}, e.g. {"ds": (ds, ("B", "T", d))}.

    Raises:
        ValueError: an argument is no tensor, has another shape, or another dtype or device than `like`.
    """
    sizes: dict[str, int] = {}
    for name, (value, shape) in arguments.items():
        expected = [sizes.get(x, x) if isinstance(x, str) else x for x in shape]
        shown = f"({', '.join(map(str, expected))}{',' * (len(expected) == 1)})"
        if not isinstance(value, Tensor):
            raise ValueError(f"{name}: expected a torch.Tensor of shape {shown}, got {type(value).__name__}")
        got = tuple(value.shape)
        if len(got) != len(expected) or any(x != n for x, n in zip(expected, got, strict=True) if isinstance(x, int)):
            raise ValueError(f"{name}: expected shape {shown}, got {got}")
        if value.dtype != like.dtype or value.device != like.device:
            raise ValueError(
                f"{name}: expected {like.dtype} on {like.device} like the dynamics, got {value.dtype} on "
                f"{value.device}; use .to(...)"
            )
        sizes |= {x: n for x, n in zip(expected, got, strict=True) if isinstance(x, str)}
    return sizes
