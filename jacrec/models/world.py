"""The world (f_θ, r_ξ, Q_φ, γ) in which a policy imagines, and policies with one set of parameters per real state."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from jacrec.models.networks import Actor, has_manual_derivatives
from jacrec.models.wrappers import check_policy_kind, copied, unwrapped
from jacrec.util.errors import counted, plain_number


class Dynamics(Protocol):
    """f_θ: state (..., d), action (..., m), noise (..., *noise_shape) -> next state (..., d); row by row."""

    @property
    def noise_shape(self) -> tuple[int, ...]: ...

    def __call__(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Anchor:
    """A reference policy π₀ in imagination: a penalty on leaving it, its action in the last term of the return, or both.

    The penalty is subtracted from the reward of steps j < H and from the terminal value, and discounted with them:

        Ĵ_β = Ĵ − β Σ_{j≤H} γ^j ‖π_ψ(s̃_j) − π₀(s̃_j)‖²

    It is ReBRAC's behaviour penalty with π₀ in the role of the data. With `terminal` the return ends in γ^H Q(s̃_H, π₀(s̃_H)), and
    the penalty with step H − 1: π_ψ acts at the steps j < H alone. Theorem 4.1 holds as it stands, with r and Q so changed.
    """

    policy: nn.Module
    """π₀: state -> action, a module of its own: a copy of the policy that is updated; its parameters are constants"""
    weight: float = 0.0
    """β > 0, in units of return; also 0, no penalty, with `terminal`"""
    terminal: bool = False
    """whether the last term takes π₀'s action, so that the ascent cannot seek actions that the critic overrates there; needs H >= 1"""

    def __post_init__(self):
        object.__setattr__(self, "policy", unwrapped(self.policy))
        if not isinstance(self.policy, nn.Module) or isinstance(self.policy, BatchedPolicy):
            raise ValueError(f"Anchor.policy: expected a single policy, an nn.Module, got {type(self.policy).__name__}")
        object.__setattr__(self, "weight", plain_number(self.weight))
        if not isinstance(self.terminal, bool):
            raise ValueError(f"Anchor.terminal: expected True or False, got {self.terminal!r}")
        number = isinstance(self.weight, int | float) and 0.0 <= self.weight < math.inf
        if not number or not (self.weight or self.terminal):
            what = "a finite β >= 0" if self.terminal else "a finite β > 0"
            raise ValueError(f"Anchor.weight: expected {what}, got {self.weight!r}; leave the anchor out for none")
        check_deterministic(self.policy, "Anchor.policy")


@dataclass(frozen=True)
class World:
    """The world in plain differentiable torch. Any callables serve; jacrec's own networks have hand-written derivatives.

    Every function maps rows independently, over any leading axes, and is deterministic: the same arguments, the same answer.
    Batch-coupled or random layers (BatchNorm, Dropout) have to be in evaluation mode. `torch.compile` and `DataParallel` are
    taken off: the world holds the modules and functions inside.
    """

    dynamics: Dynamics
    """f_θ(state, action, noise) -> next state, with attribute `noise_shape`"""
    reward: Callable[[Tensor, Tensor], Tensor]
    """r_ξ(state, action) -> (...)"""
    critic: Callable[[Tensor, Tensor], Tensor]
    """Q_φ(state, action) -> (...); a `TwinCritic` returns the smaller of its two"""
    discount: float
    """γ in [0, 1], the critic's own"""
    value_scale: float | None = None
    """mean |Q_φ(s, π(s))| over the data (`value_scale`), the unit of `MPCConfig(units="value")`; None: unknown"""
    anchor: Anchor | None = None
    """penalty on leaving a reference policy, or its action in the last term; None: the plain return (3)"""

    def __post_init__(self):
        for name in ("dynamics", "reward", "critic"):
            part = unwrapped(getattr(self, name))
            object.__setattr__(self, name, part)
            if not callable(part):
                raise ValueError(f"World.{name}: expected a callable, got {type(part).__name__}")
            if isinstance(part, nn.Module):
                check_deterministic(part, f"World.{name}")
        shape = getattr(self.dynamics, "noise_shape", None)
        if not isinstance(shape, tuple | list | torch.Size) or not all(map(_is_count, shape)):
            raise ValueError(
                "World.dynamics: expected an attribute noise_shape (the shape of one transition's noise, a tuple of integers "
                f"such as (d,); (0,) for deterministic dynamics), got {shape!r}; set it on the module or function"
            )
        for name in ("discount", "value_scale"):
            object.__setattr__(self, name, plain_number(getattr(self, name)))
        if not isinstance(self.discount, int | float) or not 0.0 <= self.discount <= 1.0:
            raise ValueError(f"World.discount: expected 0 <= γ <= 1, got {self.discount!r}")
        scale = self.value_scale
        if scale is not None and (not isinstance(scale, int | float) or not 0.0 < scale < math.inf):
            raise ValueError(f"World.value_scale: expected a finite number > 0 or None, got {scale!r}")
        if self.anchor is not None and not isinstance(self.anchor, Anchor):
            raise ValueError(f"World.anchor: expected a jacrec.Anchor(policy, weight), got {type(self.anchor).__name__}")

    def to(self, *args, **kwargs) -> "World":
        """The world with every module moved as by `nn.Module.to` (in place, as there); plain functions stay."""
        for part in (self.dynamics, self.reward, self.critic, self.anchor and self.anchor.policy):
            if isinstance(part, nn.Module):
                part.to(*args, **kwargs)
        return self


def expect_world(world: object) -> None:
    """ValueError for anything but a `World`."""
    if not isinstance(world, World):
        raise ValueError(f"world: expected a jacrec.World(dynamics, reward, critic, discount), got {type(world).__name__}")


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0


@torch.no_grad()
def value_scale(policy: nn.Module, critic: Callable[[Tensor, Tensor], Tensor], states: Tensor, *, chunk: int = 4096) -> float:
    """mean |Q_φ(s, π(s))| over states (B, d), a tensor or array: the unit in which ReBRAC's actor loss measures Q.

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    like = next(policy.parameters())
    states = torch.as_tensor(states, dtype=like.dtype, device=like.device)
    if states.dim() != 2 or not len(states):
        raise ValueError(f"states: expected shape (B, d) with B >= 1, got {tuple(states.shape)}")
    found = float(sum(critic(s, policy(s)).abs().sum(dtype=torch.float64) for s in states.split(chunk)) / len(states))
    if not math.isfinite(found):
        raise ValueError(f"value_scale: expected finite values, got a mean |Q| of {found}; are states and parameters finite?")
    return found


class BatchedPolicy(nn.Module):
    """n copies of a policy, each with its own parameters, for n real states.

    Parameters keep their names and gain a leading axis n; buffers are shared. Calling it maps (n, ..., d) to (n, ..., m),
    slice i with parameters i.
    """

    def __init__(self, policy: nn.Module, n: int):
        super().__init__()
        n = counted("BatchedPolicy.n", n)
        if isinstance(policy, BatchedPolicy):
            raise ValueError("BatchedPolicy: expected a single policy, got a BatchedPolicy")
        policy = unwrapped(policy)
        check_policy_kind(policy)
        template = copied(policy)
        self.n = n
        # the template is kept outside the module tree: it is the architecture, its parameters are not used
        self.template: nn.Module
        object.__setattr__(self, "template", copied(policy).requires_grad_(False))
        taken = [name for name in [*template._modules, *template._parameters, *template._buffers] if hasattr(self, name)]
        if taken:
            raise ValueError(f"BatchedPolicy: the policy's attributes {taken} collide with its own; rename them")
        _stack_parameters(template, n)
        for name, child in template.named_children():
            self.add_module(name, child)
        for name, parameter in template.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in template.named_buffers(recurse=False):
            self.register_buffer(name, buffer)

    def train(self, mode: bool = True) -> "BatchedPolicy":
        """Training or evaluation mode, of the architecture too."""
        self.template.train(mode)
        return super().train(mode)

    def forward(self, state: Tensor) -> Tensor:
        """(n, ..., d) -> (n, ..., m)."""
        if type(self.template) is Actor and has_manual_derivatives(self.get_submodule("mlp")) and state.shape[0] == self.n:
            return self.get_submodule("mlp")(state)
        return batched_call(self, dict(self.named_parameters()), state)


def architecture_of(policy: Any) -> Any:
    """The policy itself, or the one whose copies a `BatchedPolicy` holds; other parts are returned as they are."""
    return policy.template if isinstance(policy, BatchedPolicy) else policy


def called_with(module: nn.Module, tensors: dict[str, Tensor], *arguments: Tensor) -> Tensor:
    """The module's answer with these parameters and buffers, by the names that `named_parameters` gives them, as its own.

    As `torch.func.functional_call`, which puts back a substitute where the same module stands in two places (torch 2.13).
    """
    own = {id(x): tensors[name] for name, x in (*module.named_parameters(), *module.named_buffers()) if name in tensors}
    every = {}
    for prefix, part in module.named_modules():
        for name, x in (*part._parameters.items(), *part._buffers.items()):
            if id(x) in own and x is not None:
                every[f"{prefix}.{name}" if prefix else name] = own[id(x)]
    return torch.func.functional_call(module, every, arguments, tie_weights=False)


def batched_call(policy: BatchedPolicy, parameters: dict[str, Tensor], state: Tensor) -> Tensor:
    """The n policies with the given stacked parameters on state (n, ..., d)."""
    if state.shape[0] != policy.n:
        raise ValueError(f"state: expected {policy.n} rows, one for each policy, got shape {tuple(state.shape)}")
    buffers = dict(policy.named_buffers())

    def one(p: dict[str, Tensor], s: Tensor) -> Tensor:
        return called_with(policy.template, {**p, **buffers}, s)

    return torch.func.vmap(one)(parameters, state)


@torch.no_grad()
def policy_action(policy: nn.Module, state: Tensor) -> Tensor:
    """π_ψ at states (N, d) -> (N, m), state n with parameters n of a `BatchedPolicy`."""
    return apply_policy(policy, None, state.unsqueeze(1)).squeeze(1)


def apply_policy(policy: nn.Module, parameters: dict[str, Tensor] | None, state: Tensor) -> Tensor:
    """The policy at states (N, R, d) -> (N, R, m), with `parameters` instead of its own if given.

    A single policy sees one batch axis, (N·R, d), as the functions of a `World` do.

    Raises:
        ValueError: the policy did not return one action per state.
    """
    N, R, d = state.shape
    if isinstance(policy, BatchedPolicy):
        action = policy(state) if parameters is None else batched_call(policy, parameters, state)
    else:
        rows = state.reshape(N * R, d)
        try:
            action = policy(rows) if parameters is None else called_with(policy, parameters, rows)
        except RuntimeError as error:
            raise ValueError(
                f"policy: expected to take states of shape ({N * R}, {d}), got an error; is d = {d} its dimension? {error}"
            ) from error
    if not isinstance(action, Tensor) or action.dim() != (3 if isinstance(policy, BatchedPolicy) else 2):
        got = tuple(action.shape) if isinstance(action, Tensor) else type(action).__name__
        raise ValueError(f"policy: expected actions of shape ({N * R}, m) for states ({N * R}, {d}), got {got}")
    return action.reshape(N, R, action.shape[-1])


def check_deterministic(module: nn.Module, name: str) -> None:
    """ValueError if `module` has a layer that couples rows or draws noise in its current mode."""
    for path, child in module.named_modules():
        random = isinstance(child, nn.modules.dropout._DropoutNd) and child.p > 0
        coupled = isinstance(child, nn.modules.batchnorm._BatchNorm)
        if child.training and (random or coupled):
            raise ValueError(
                f"{name}: expected deterministic, row-wise layers, got {type(child).__name__} at '{path}' in "
                "training mode; call .eval() first"
            )


def _stack_parameters(module: nn.Module, n: int) -> None:
    stacks: dict[nn.Parameter, nn.Parameter] = {}  # tied parameters stay tied
    for child in module.modules():
        for name, parameter in list(child._parameters.items()):
            if parameter is not None and parameter not in stacks:
                stacked = parameter.detach().unsqueeze(0).repeat(n, *(1,) * parameter.dim())
                stacks[parameter] = nn.Parameter(stacked, requires_grad=parameter.requires_grad)
            if parameter is not None:
                child._parameters[name] = stacks[parameter]
