"""Checks of the engine's inputs, and their conversion to its batched layout."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from jacrec.engine.admission import admit
from jacrec.engine.dispatch import kept_plan
from jacrec.engine.problem import Problem
from jacrec.models.networks import has_manual_derivatives
from jacrec.models.world import BatchedPolicy, World, architecture_of, check_deterministic, expect_world
from jacrec.models.wrappers import check_policy_kind, unwrapped

AUTOCAST = ("cpu", "cuda")
"""kinds of devices on which autocast may be enabled"""
FEW = 64
"""numbers up to which Python is faster than torch"""
Given = ParamSpec("Given")
Answer = TypeVar("Answer")


def plain_torch(function: Callable[Given, Answer]) -> Callable[Given, Answer]:
    """Decorator: disable inference mode, in which nothing has a derivative, and autocast, which rounds."""

    @wraps(function)
    def plain(*args: Given.args, **kwargs: Given.kwargs) -> Answer:
        device_types = [kind for kind in AUTOCAST if torch.is_autocast_enabled(kind)]
        if not device_types and not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            for kind in device_types:
                stack.enter_context(torch.autocast(kind, enabled=False))
            return function(*args, **kwargs)

    return plain


def problem(policy: nn.Module, world: World, state: Tensor, noise: Tensor, *, in_place: bool = False) -> Problem:
    """Check and lay out: state (d,) or (N, d), noise (M, H, *noise_shape) or (N, M, H, *noise_shape).

    Args:
        in_place: the policy itself is to be updated (`admit`).

    Raises:
        ValueError: wrong type, shape, dtype, device, or a value that is not finite; says what was expected. On a GPU, a value
            that is not finite makes its row of the state NaN instead (`mark_nonfinite`).
    """
    policy = unwrapped(policy)
    state, single, plan = check_state(policy, world, state)
    noise = check_noise(world, state, noise, single)
    check_depends(world, noise.shape[2])
    if plan is None:
        admit(policy, world, state, noise.shape[2], in_place=in_place)
        plan = kept_plan(policy, world, state, examined=True)
    return Problem(policy, world, mark_nonfinite(state, noise), noise, single, plan)


def check_noise(world: World, state: Tensor, noise: Tensor, single: bool) -> Tensor:
    """The noise as (N, M, H, *noise_shape), for a checked state (N, d)."""
    check_tensor("noise", noise)
    tail, shape, N = tuple(world.dynamics.noise_shape), tuple(noise.shape), state.shape[0]
    lead = len(shape) - len(tail)
    fits = lead == (2 if single else 3) and shape[lead:] == tail and shape[lead - 2] >= 1
    if not fits or (not single and shape[0] != N):
        expected = ("M", "H", *tail) if single else (N, "M", "H", *tail)
        raise ValueError(
            f"noise: expected shape ({', '.join(map(str, expected))}) with M >= 1 particles, got {shape}; "
            f"one transition's noise is {tail} (dynamics.noise_shape)"
        )
    if noise.dtype != state.dtype or noise.device != state.device:
        raise ValueError(f"noise: expected {state.dtype} on {state.device} like the state, got {noise.dtype} on {noise.device}")
    noise = noise.unsqueeze(0) if single else noise
    noise = noise.clone() if noise.is_inference() else noise
    check_finite("noise", noise)
    return noise


def check_state(policy: nn.Module, world: World, state: Tensor) -> tuple[Tensor, bool, object | None]:
    """The state as (N, d), whether it came as (d,), and the kernels' kept plan; checks policy and world against it.

    Where the kernels keep a plan for policy and world, the two are unchanged since they were last checked, and are not
    checked again.
    """
    plan = kept_plan(policy, world, state)
    if plan is None:
        check_policy_kind(policy)
        expect_world(world)
        check_tensor("state", state)
    if state.dim() not in (1, 2) or not state.numel():
        raise ValueError(f"state: expected shape (d,) or (N, d), got {tuple(state.shape)}")
    if plan is None:
        if state.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"state: expected float32 or float64, got {state.dtype}: a step of 5e-5 would round to nothing in it"
            )
        check_parts(policy, world, state)
    single = state.dim() == 1
    state = state.unsqueeze(0) if single else state
    if isinstance(policy, BatchedPolicy) and policy.n != state.shape[0]:
        raise ValueError(f"state: expected {policy.n} rows, one for each policy of the BatchedPolicy, got {state.shape[0]}")
    check_finite("state", state)
    state = mark_nonfinite(state, state)
    return state.clone() if state.is_inference() else state, single, plan


def check_depends(world: World, horizon: int) -> None:
    """ValueError if the policy's action at s_t is not in the return: H = 0 with the anchor's action in the only term."""
    if horizon == 0 and world.anchor is not None and world.anchor.terminal:
        raise ValueError(
            "horizon: expected H >= 1 with Anchor.terminal, since the only term of H = 0 is then Q(s, π₀(s)), which does not "
            "depend on the policy that is updated, got 0; imagine a step, or leave terminal out"
        )


def check_parts(policy: nn.Module, world: World, state: Tensor) -> None:
    """ValueError unless the networks fit a state (..., d) and one another."""
    if first_parameter(policy) is None:
        raise ValueError("policy: expected a module with parameters to improve, got none")
    for name, part in {"policy": policy, "dynamics": world.dynamics, "reward": world.reward, "critic": world.critic}.items():
        check_part(name, part, state, world.dynamics)
    if world.anchor is not None:
        own = {p.data_ptr() for p in policy.parameters() if p.numel()}
        if world.anchor.policy is policy or any(p.data_ptr() in own for p in world.anchor.policy.parameters()):
            raise ValueError("anchor: expected a policy of its own, got the one that is updated; give copy.deepcopy(policy)")
        check_part("anchor", world.anchor.policy, state, world.dynamics)


def first_parameter(module: nn.Module) -> Tensor | None:
    """`next(module.parameters(), None)` in less than half its time."""
    parts = [module]
    while parts:
        part = parts.pop()
        for parameter in part._parameters.values():
            if parameter is not None:
                return parameter
        parts.extend(child for child in reversed(part._modules.values()) if child is not None)
    return None


def check_part(name: str, part: object, state: Tensor, dynamics: object) -> None:
    """ValueError if a network's dimensions do not match the state or the dynamics, or if it has random layers."""
    maker = architecture_of(part)
    for dim, expected in (("state_dim", state.shape[-1]), ("action_dim", getattr(dynamics, "action_dim", None))):
        own = getattr(maker, dim, None)
        if isinstance(own, int) and isinstance(expected, int) and own != expected:
            what = f"a state of dimension {own}" if dim == "state_dim" else f"{own} actions"
            against = "the state has" if dim == "state_dim" else "the dynamics have"
            raise ValueError(f"{name}: expects {what}, but {against} {expected}; all parts must share d and m")
    if not isinstance(part, nn.Module):
        return
    if not has_manual_derivatives(part):
        check_deterministic(part, name)
    first = first_parameter(part)
    if first is not None and (first.dtype != state.dtype or first.device != state.device):
        raise ValueError(
            f"state: expected {first.dtype} on {first.device} like the {name}'s parameters, got {state.dtype} "
            f"on {state.device}; convert one of them with .to(...)"
        )
    if first is not None and first.is_inference():
        raise ValueError(
            f"{name}: expected parameters that have derivatives, got some made in torch.inference_mode; make or load it outside, "
            "or in torch.no_grad"
        )


def check_tensor(name: str, value) -> None:
    """ValueError unless `value` is a floating-point tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a torch.Tensor, got {type(value).__name__}; use torch.as_tensor(...)")
    if not value.is_floating_point():
        raise ValueError(f"{name}: expected a floating-point tensor, got {value.dtype}; use .float()")


def readable(x: Tensor) -> bool:
    """Whether reading a value costs no wait for all that a GPU has still to do."""
    return x.is_cpu


def mark_nonfinite(state: Tensor, value: Tensor) -> Tensor:
    """On a GPU: the state (N, d), NaN in the rows where `value` (N, …) is not finite, so that Ĵ and its gradient are NaN.

    Nothing is read back. An update finds out when it reads whether it may take the step (`jacrec.control.ascent`).
    """
    if readable(value):
        return state
    return state + (value.detach() * 0.0).reshape(len(value), -1).sum(1, keepdim=True)


def check_finite(name: str, value: Tensor, *, wait: bool = False) -> None:
    """ValueError naming the first-axis rows that hold NaN or infinity; a GPU's tensors are read with `wait` alone."""
    if not wait and not readable(value):
        return
    few = few_numbers(value)
    total = value.detach().sum().item() if few is None else sum(few)
    if math.isfinite(total):  # then all are; a sum may also overflow
        return
    finite = torch.isfinite(value)
    if not finite.all():
        rows = (~finite.reshape(value.shape[0], -1).all(-1)).nonzero().flatten().tolist()
        raise ValueError(f"{name}: expected finite values, got NaN or infinity in rows {rows[:8]} of {value.shape[0]}")


def few_numbers(x: Tensor) -> list[float] | None:
    """The elements of a small matrix as Python's: torch prepares an operation for longer than Python takes; None for others."""
    return [value for row in x.tolist() for value in row] if x.dim() == 2 and x.numel() <= FEW else None


def as_observation(observation) -> Tensor:
    """An observation as a tensor: a tensor as it is; an array of any layout and byte order, or a list, as a copy on the CPU.

    Raises:
        ValueError: it does not hold real numbers.
    """
    if isinstance(observation, Tensor):
        return observation
    if not isinstance(observation, np.ndarray | list):
        raise ValueError(
            f"observation: expected a numpy array, torch tensor or list of numbers, got {type(observation).__name__}; "
            "gymnasium's reset() returns (observation, info)"
        )
    try:
        numbers = np.asarray(observation)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"observation: expected numbers in rows of equal length, got a list that is none ({error})") from None
    if numbers.dtype.kind not in "biuf":
        raise ValueError(f"observation: expected real numbers, got {numbers.dtype}; convert it with .astype(float)")
    if np.ma.is_masked(observation):
        raise ValueError("observation: expected numbers, got masked entries; fill them")
    small = numbers.dtype.itemsize <= 8 and numbers.dtype.kind in "bif"
    # torch refuses negative strides, foreign byte orders, read-only memory and some types
    return torch.from_numpy(np.array(numbers, numbers.dtype.newbyteorder("=") if small else np.float64))


def check_observation(observation, batch: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A controller's observation as a tensor: (d,) for one environment (batch None), (N, d) for N."""
    given = as_observation(observation)
    if given.dim() != (1 if batch is None else 2) or (batch is not None and given.shape[0] != batch):
        shape = "(d,)" if batch is None else f"({batch}, d)"
        raise ValueError(
            f"observation: expected shape {shape}, got {tuple(given.shape)}; a controller with batch=N takes N observations"
        )
    state = given.to(dtype=dtype, device=device)
    if not readable(state) and readable(given):
        # here, before it leaves the host; in the controller's dtype, in which it may overflow
        check_finite("state", given.to(dtype).reshape(-1, given.shape[-1]))
    return state


def row_mask(rows, batch: int | None, device: torch.device) -> Tensor:
    """Row indices or a mask over a controller's N environments, as a mask (N,)."""
    if batch is None:
        raise ValueError("rows: expected None for a controller of one environment, got some; construct it with batch=N")
    given = torch.as_tensor(rows, device=device)
    if given.dtype == torch.bool and given.shape == (batch,):
        return given
    index = given.reshape(-1).long()
    exact = given.dtype != torch.bool and (not given.is_floating_point() or not given.numel())
    if not exact or bool(((index < 0) | (index >= batch)).any()):
        raise ValueError(f"rows: expected indices in 0..{batch - 1} or a mask of shape ({batch},), got {rows!r}")
    mask = torch.zeros(batch, dtype=torch.bool, device=device)
    mask[index] = True
    return mask
