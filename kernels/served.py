"""What the Triton kernels can serve: sizes, devices, and arguments that fit; what holds for modules is in `refusals`."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from jacrec.engine.jacobians.policy import has_written_jacobian
from jacrec.engine.problem import Problem
from jacrec.kernels import refusals
from jacrec.kernels.launch import interpreted
from jacrec.kernels.refusals import DYNAMICS_SCALES as DYNAMICS_SCALES
from jacrec.models.dynamics import ChainDynamics
from jacrec.models.networks import Actor, RewardModel, TwinCritic, has_manual_derivatives
from jacrec.models.world import architecture_of

MAX_WIDTH, MAX_DEPTH, MAX_STATE, MAX_ACTION = 1024, 6, 64, 32


def unsupported_reason(subject: object) -> str | None:
    """Why the kernels cannot serve a `Problem` or dynamics, what was expected and what was found; None if they can.

    A third-party policy, reward or critic is evaluated by torch beside the chains; jacrec's own must be what their attributes say.
    """
    f = subject.world.dynamics if isinstance(subject, Problem) else subject
    like = getattr(f, "out_std", None)
    reason = refusals.dynamics_reason(f, (ChainDynamics,), like if isinstance(like, Tensor) else torch.empty(0))
    if reason is None and isinstance(f, ChainDynamics):
        reason = _size_reason(f)
        if reason is None and isinstance(subject, Problem):
            reason = _inputs_reason(subject, f) or _parts_reason(subject, f)
        reason = reason or _device_reason(f.out_std.device)
    return reason


def require_supported(subject: object) -> None:
    """ValueError with `unsupported_reason`'s reason."""
    reason = unsupported_reason(subject)
    if reason is not None:
        raise ValueError(f"{reason}; or use the plain twin, jacrec.engine.jacobians.chain")


def _size_reason(f: ChainDynamics) -> str | None:
    """Why a chain is too large, or of another dtype."""
    mlp = f.denoiser.mlp
    for what, got, most in (
        ("state dimension", f.state_dim, MAX_STATE),
        ("action dimension", f.action_dim, MAX_ACTION),
        ("hidden width", max(mlp.hidden), MAX_WIDTH),
        ("number of hidden layers", len(mlp.hidden), MAX_DEPTH),
    ):
        if got > most:
            return f"dynamics: expected a {what} of at most {most}, got {got}"
    if f.out_std.dtype not in refusals.DTYPES:
        return f"dynamics: expected float32 or float64, got {f.out_std.dtype}; use .to(dtype)"
    return None


def _inputs_reason(p: Problem, f: ChainDynamics) -> str | None:
    """Why a problem's state and noise are not those of its dynamics."""
    try:
        fitting(f.out_std, {"state": (p.state, ("N", f.state_dim)), "noise": (p.noise, ("N", "M", "H", f.noises, f.state_dim))})
    except ValueError as error:
        return str(error)
    return None


def _parts_reason(p: Problem, f: ChainDynamics) -> str | None:
    """Why jacrec's own modules among policy, reward and critic are not what their attributes say."""
    like, d, m = p.state, f.state_dim, f.action_dim
    policy, reward, critic = p.policy, p.world.reward, p.world.critic
    own = architecture_of(policy)
    reason = refusals.methods_replaced("policy", policy) if type(own) is Actor else None
    if reason is None and type(own) is Actor and has_written_jacobian(policy):
        reason = refusals.policy_reason(policy, d, m, like)
    for name, part, kind, own_reason in (
        ("reward", reward, RewardModel, refusals.reward_reason),
        ("critic", critic, TwinCritic, refusals.critic_reason),
    ):
        if reason is None and isinstance(part, nn.Module) and type(part) is kind:
            reason = refusals.methods_replaced(name, part)
            if reason is None and has_manual_derivatives(part):
                reason = own_reason(part, d, m, like)
    return reason


def _device_reason(device: torch.device) -> str | None:
    """Why the kernels cannot run on a device."""
    if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
        return (
            f"device: expected cuda, got {device.type}; move policy, world, state and noise with .to('cuda') "
            "(TRITON_INTERPRET=1 interprets the kernels on a CPU, for tests)"
        )
    if device.type == "cuda" and interpreted():
        return "device: the kernels were imported with TRITON_INTERPRET=1, which is for CPU tensors; unset it"
    return _gpu_reason(device) if device.type == "cuda" else None


LEAST_CAPABILITY = (8, 0)
"""Ampere, the first whose tensor cores multiply TF32 and float64"""


def _gpu_reason(device: torch.device) -> str | None:
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
