"""Every part of a problem is called before it is used: a part that is random, or whose rows are not independent, is refused.

The gradient of a return belongs to a deterministic policy, and to dynamics, reward and critic that are functions of their
arguments: all randomness is in the noise. A part that draws numbers of its own gives another gradient at every call, unnoticed.
"""

import inspect
import logging
import random
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jacrec.models.dynamics import ChainDynamics, MultiStepDynamics
from jacrec.models.dynamics.chain import chain_reason
from jacrec.models.networks import MLP, WRITTEN, has_manual_derivatives
from jacrec.models.world import BatchedPolicy, World, architecture_of, called_with
from jacrec.util.errors import expect_shape
from jacrec.util.forks import one_thread_after_fork

ROWS = 16
"""given states, at most, that a part is called with"""
CALLS = 64
"""calls of a part that draws random numbers and gave the same answer twice"""
RECIPES = {
    "policy": "wrap the mean of its distribution in a module: forward(state) -> torch.tanh(mean), for example",
    "dynamics": "compute with the argument noise instead, with noise_shape as its shape",
    "reward": "wrap its mean in a function of (state, action)",
    "critic": "wrap its mean in a function of (state, action)",
    "anchor": "wrap the mean of its distribution in a module, as for the policy",
}
JOINED = "; for a network of one input: lambda s, a: net(torch.cat([s, a], -1))"
SIGNATURES = {
    "dynamics": "; where it needs no noise, let it ignore it, with noise_shape = (0,)",
    "reward": JOINED,
    "critic": JOINED,
}
CALLED = {"policy": "policy(state)", "anchor": "anchor(state)", "dynamics": "dynamics(state, action, noise)"}

_log = logging.getLogger("jacrec")
_admitted: dict[tuple, weakref.ref] = {}
"""the parts that have been called, by address, dimensions and flags"""


@torch.no_grad()
def admit(policy: nn.Module, world: World, state: Tensor, horizon: int, *, in_place: bool = False) -> None:
    """Call policy and world at states (..., d), unless they have been: at first use, and when a flag has changed.

    Afterwards torch's, numpy's and Python's random numbers and the modules' buffers are as they were. With horizon 0 the
    policy and the critic alone are used, and called.

    Args:
        in_place: the policy itself is to be updated, so that none of its parameters may be the world's.

    Raises:
        ValueError: a part cannot be called, answers with something else, changes its arguments, is random, answers to a row by
            what the others are or how many, or, with `in_place`, has parameters that an update of the policy changes.
    """
    parts = dict(_parts(policy, world, horizon))
    use = id(policy) if in_place else None
    if all((*_key(name, part, state), use) in _admitted for name, part in parts.items()):
        return
    generator = torch.Generator().manual_seed(0)
    state = state.detach().reshape(-1, state.shape[-1])[:ROWS]
    # and beside them, where a factor of 0 would hide what it multiplies
    near = torch.randn(2, *state.shape, generator=generator).to(state)
    state = torch.cat([state, state + 0.2 * near[0], state + 0.1 * near[1]])
    with _random_numbers_restored(state.device), one_thread_after_fork():
        one = _first_of(policy) if isinstance(policy, BatchedPolicy) else policy
        if isinstance(policy, BatchedPolicy):
            _check_stacked(policy, state)
        action = _admit("policy", policy, (state,), one)
        _check_attached(architecture_of(policy), _own_tensors(policy), state)
        noise = torch.zeros(len(state), *world.dynamics.noise_shape).normal_(generator=generator)
        arguments = {"dynamics": (state, action, noise.to(state)), "anchor": (state,)}
        called = parts.keys() - {"policy"}
        if "dynamics" in parts and isinstance(world.dynamics, MultiStepDynamics):  # it is called in another way
            called -= {"dynamics"}
            _check_widths("dynamics", world.dynamics)
        for name in called:
            answer = _admit(name, parts[name], arguments.get(name, (state, action)))
            if name == "anchor":
                expect_shape(name, answer, tuple(action.shape), ", as the policy's actions")
            if in_place:
                _check_apart(name, parts[name], arguments.get(name, (state, action)), policy)
    for name, part in parts.items():
        _remember((*_key(name, part, state), use), part)


def _parts(policy: nn.Module, world: World, horizon: int) -> Iterator[tuple[str, Any]]:
    yield "policy", policy
    yield "critic", world.critic
    if horizon:
        yield "reward", world.reward
    if world.anchor is not None:
        yield "anchor", world.anchor.policy
    if horizon:
        yield "dynamics", world.dynamics


@torch.no_grad()
def check_parameters(policy: nn.Module, world: World) -> None:
    """Name the parts with parameters that are not finite: no policy acts with them, and no update is accepted with the others.

    Raises:
        ValueError: the policy. The others are logged.
    """
    for name, part in _parts(policy, world, horizon=1):
        for key, parameter in part.named_parameters() if isinstance(part, nn.Module) else ():
            if not parameter.isfinite().all():
                found = f"{name}: expected finite parameters, got NaN or infinity in {key}; load or train it again"
                if name == "policy":
                    raise ValueError(found)
                _log.warning("%s; until then no update is accepted", found)
                break


def _own_tensors(policy: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the policy; of n policies those of the first: the template's are not used."""
    if not isinstance(policy, BatchedPolicy):
        return {**dict(policy.named_parameters()), **dict(policy.named_buffers())}
    return {name: p[0] for name, p in policy.named_parameters()} | dict(policy.named_buffers())


def _first_of(policy: BatchedPolicy) -> Callable[[Tensor], Tensor]:
    """The first of n policies."""
    own = _own_tensors(policy)
    return lambda state: called_with(policy.template, own, state)


def _key(name: str, part: Any, state: Tensor) -> tuple:
    """What a call depends on besides numbers: flags such as `training` or a library's `deterministic`, and shapes."""
    key = name, id(part), state.shape[-1], state.dtype, state.device
    if not isinstance(part, nn.Module):
        return key
    # numbers of a third-party module may count its calls
    kinds = (bool, str, int, float, tuple) if has_manual_derivatives(architecture_of(part)) else (bool, str)
    modules = list(part.modules())
    modules += part.template.modules() if isinstance(part, BatchedPolicy) else []
    flags = [value for x in modules for value in x.__dict__.values() if type(value) in kinds]
    tensors = [p if p is None else (p.shape, p.dtype) for x in modules for p in (*x._parameters.values(), *x._buffers.values())]
    return *key, *flags, *tensors


def _remember(key: tuple, part: Any) -> None:
    with suppress(TypeError):  # what cannot be referred to weakly is called every time
        _admitted[key] = weakref.ref(part, lambda _: _admitted.pop(key, None))


def _admit(name: str, part: Any, arguments: tuple[Tensor, ...], call: Callable | None = None) -> Tensor:
    """The part's answer; call: what to call instead of the part itself.

    Raises:
        ValueError: see `admit`.
    """
    evaluate: Callable = part if call is None else call
    with _buffers_restored(part):
        before = _random_state()
        first = _call(name, evaluate, arguments)
        drew = before != _random_state()
        for _ in range(CALLS if drew else 1):
            if not _same(first, _call(name, evaluate, arguments), exactly=drew):
                raise ValueError(
                    f"{name}: expected the same answer to the same input, got another one, since it is random or keeps state "
                    f"between calls; {RECIPES[name]}, or call .eval() if the randomness is that of training"
                )
        _check_rows(name, evaluate, arguments, first)
    _check_widths(name, part)
    return first


def _check_rows(name: str, call: Callable, arguments: tuple[Tensor, ...], answer: Tensor) -> None:
    """ValueError if a row's answer changes with the rows beside it: the derivatives are those of each row alone.

    One of the given rows, and one of those at each distance beside them, is put in the place of all. Two would not do: a largest
    element may be the same in both. Then the rows are given twice, since an answer may depend on nothing but their number.
    """
    for row in (0, len(answer) // 2, -1):
        alike = tuple(x[row].expand_as(x).contiguous() for x in arguments)
        if not _same(answer[row], _call(name, call, alike)[row], exactly=False):
            raise ValueError(
                f"{name}: expected a row's answer to depend on that row alone, got another one beside other rows; normalise by stored "
                "statistics instead of the batch's, and reduce over the last axis alone (dim=-1)"
            )
    n = len(answer)
    if not _same(answer, _call(name, call, tuple(torch.cat([x, x]) for x in arguments))[:n], exactly=False):
        raise ValueError(
            f"{name}: expected a row's answer to depend on that row alone, got another one in a batch of {2 * n} rows than in one of "
            f"{n}; do not divide by the number of rows, nor treat a batch of one size in another way"
        )


def _check_stacked(policy: BatchedPolicy, state: Tensor) -> None:
    """ValueError if the n policies have other parameters than their architecture: what it lacks would be ignored."""
    expected = {name: (policy.n, *p.shape) for name, p in policy.template.named_parameters()}
    got = {name: tuple(p.shape) for name, p in policy.named_parameters()}
    for name in [*expected, *got]:
        if expected.get(name) != got.get(name):
            raise ValueError(
                f"policy: expected {name} of shape {expected.get(name, 'none')}, one for each of {policy.n} policies, got "
                f"{got.get(name, 'none')}; change the policy first, then build the BatchedPolicy or controller anew"
            )
    for name, p in policy.named_parameters():
        if p.is_floating_point() and (p.dtype != state.dtype or p.device != state.device):
            raise ValueError(
                f"policy: expected {name} as {state.dtype} on {state.device} like the state, got {p.dtype} on {p.device}; "
                "convert one of them with .to(...)"
            )


def _check_attached(policy: nn.Module, tensors: dict[str, Tensor], state: Tensor) -> None:
    """ValueError if the actions do not depend on the policy's parameters: an update would move them without effect."""
    if has_manual_derivatives(policy):
        return
    with _buffers_restored(policy), torch.enable_grad():
        parameters = {name for name, p in policy.named_parameters() if p.is_floating_point()}
        given = {name: x.detach().clone().requires_grad_(name in parameters) for name, x in tensors.items()}
        own = [given[name] for name in parameters]
        answer = called_with(policy, given, state.clone())
        slopes = torch.autograd.grad(answer.sum(), own, allow_unused=True) if answer.requires_grad else ()
    if all(slope is None for slope in slopes):
        raise ValueError(
            "policy: expected actions that depend on its parameters, got some cut off from them; leave torch.no_grad, detach and "
            "torch.compile out of its forward"
        )


def _check_apart(name: str, part: Any, arguments: tuple[Tensor, ...], policy: nn.Module) -> None:
    """ValueError if the answer of a part of the world depends on the policy's own parameters: an update would change the part."""
    own = [p for p in policy.parameters() if p.requires_grad]
    with _buffers_restored(part), torch.enable_grad():
        answer = _call(name, part, arguments)
        slopes = torch.autograd.grad(answer.sum(), own, allow_unused=True) if own and answer.requires_grad else ()
    if any(slope is not None for slope in slopes):
        raise ValueError(
            f"{name}: expected parameters of its own, got some of the policy's, which the update in place changes; give it a "
            "copy.deepcopy of what they share, freeze that (requires_grad_(False)), or use jacrec.MPC, which updates a copy"
        )


def _check_widths(name: str, part: Any) -> None:
    """ValueError if a network of jacrec has other layers than its attribute `hidden` says, by which it is differentiated."""
    for network in part.modules() if isinstance(part, nn.Module) else ():
        for key in ("state_dim", "action_dim") if type(network) in WRITTEN else ():
            if key in network.__dict__ and type(network.__dict__[key]) is not int:
                raise ValueError(f"{name}: expected an integer as its {key}, got {network.__dict__[key]!r}; build it anew")
        reason = chain_reason(network) if isinstance(network, ChainDynamics) else None
        if reason is not None:
            raise ValueError(f"{reason}; build it anew")
        if type(network) is not MLP:
            continue
        widths = tuple(layer.weight.shape[-2] for layer in list(network.layers)[:-1])
        if tuple(network.hidden) != widths or len(network.norms) not in (0, len(widths)):
            raise ValueError(
                f"{name}: expected a network whose hidden widths are those of its layers, {widths}, each with a LayerNorm or "
                f"none, got hidden = {network.hidden} and {len(network.norms)} LayerNorms; build it anew"
            )
        fans = zip((network.in_dim, *widths), (*widths, network.out_dim), network.layers, strict=False)
        expected = [(layer, {"weight": (b, a), "bias": (b,)}) for a, b, layer in fans]
        expected += [(norm, {"weight": (w,), "bias": (w,)}) for w, norm in zip(widths, network.norms, strict=False)]
        for layer, shapes in expected:
            for key, shape in shapes.items():
                if key not in layer._parameters:  # a library computes it from others
                    continue
                tensor = layer._parameters[key]
                # torch does without, and one of another shape may still broadcast
                if tensor is None or tuple(tensor.shape[-len(shape) :]) != shape:
                    raise ValueError(
                        f"{name}: expected a {key} of shape {shape} in a {type(layer).__name__} of its network, got "
                        f"{tensor if tensor is None else tuple(tensor.shape)}; build it anew"
                    )


def _call(name: str, part: Any, arguments: tuple[Tensor, ...]) -> Tensor:
    """part(*arguments), with every error named."""
    call = CALLED.get(name, f"{name}(state, action)")
    given = [x.clone() for x in arguments]
    shapes = ", ".join(str(tuple(x.shape)) for x in arguments)
    reason = _signature_reason(part, given)
    if reason is not None:
        advice = SIGNATURES.get(name, "") if "too many" in reason else ""
        raise ValueError(f"{name}: expected a callable {call}, got one with another signature: {reason}{advice}")
    try:
        answer = part(*given)
    except Exception as error:
        raise ValueError(
            f"{name}: expected to take {call} of shapes {shapes}, got an error; is d = {arguments[0].shape[-1]} its "
            f"dimension? {type(error).__name__}: {error}"
        ) from error
    if any(not _same(a, b, exactly=True) for a, b in zip(given, arguments, strict=True)):
        raise ValueError(f"{name}: expected its arguments to stay as they are, got them changed in place; clone them first")
    return _checked(name, answer, arguments)


def _signature_reason(part: Any, arguments: list[Tensor]) -> str | None:
    """Why a call cannot bind its arguments; None if it can, or if its signature is unknown."""
    function: Callable = part.forward if isinstance(part, nn.Module) else part
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*arguments)
    except TypeError as error:
        return f"{signature}, {error}"
    return None


def _checked(name: str, answer: Any, arguments: tuple[Tensor, ...]) -> Tensor:
    """The answer as a tensor of the right shape."""
    state, advice = arguments[0], ""
    if isinstance(answer, tuple | list) and name == "critic":
        advice = "; take the minimum: lambda s, a: torch.minimum(*critic(s, a))"
    elif isinstance(answer, Tensor) and name in ("reward", "critic"):
        heads = name == "critic" and answer.dim() == 2
        advice = (
            "; of several heads take the smallest, with .amin(axis)" if heads else "; reduce over the last axis alone (dim=-1)"
        )
    elif not isinstance(answer, Tensor):
        advice = "; return the next state alone" if name == "dynamics" else f"; {RECIPES[name]}"
    shown = f" for state {tuple(state.shape)}, action {tuple(arguments[-1].shape)}{advice}"
    if name in ("policy", "anchor"):
        if not isinstance(answer, Tensor) or answer.dim() != 2 or len(answer) != len(state):
            got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise ValueError(
                f"{name}: expected actions of shape ({len(state)}, m) for states {tuple(state.shape)}, got {got}{advice}"
            )
    elif name == "dynamics":
        expect_shape(name, answer, tuple(state.shape), shown)
    else:
        column = isinstance(answer, Tensor) and tuple(answer.shape) == (len(state), 1)
        expect_shape(name, answer.squeeze(-1) if column else answer, (len(state),), shown)  # pyright: ignore
    assert isinstance(answer, Tensor)
    if name in ("policy", "anchor", "dynamics") and answer.dtype != state.dtype:
        raise ValueError(
            f"{name}: expected an answer in {state.dtype} like the state, got {answer.dtype}; convert it with .to(...)"
        )
    if not answer.is_floating_point():
        raise ValueError(f"{name}: expected a floating-point answer, got {answer.dtype}; convert it with .to(state.dtype)")
    return answer


def _same(first: Tensor, second: Tensor, *, exactly: bool) -> bool:
    """Whether two answers agree; without random numbers up to the rounding of sums in another order."""
    if exactly:
        return torch.equal(first.nan_to_num(), second.nan_to_num()) and torch.equal(first.isnan(), second.isnan())
    tolerance = torch.finfo(first.dtype).eps ** 0.5
    finite = first[first.isfinite()]
    size = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(first, second, rtol=tolerance, atol=tolerance * size, equal_nan=True)


def _random_state() -> tuple:
    """The state of all global generators, to be compared."""
    numbers: Any = np.random.get_state(legacy=True)
    torch_states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        torch_states.append(torch.cuda.get_rng_state())
    return random.getstate(), numbers[1].tobytes(), numbers[2], *(x.numpy().tobytes() for x in torch_states)


@contextmanager
def _random_numbers_restored(device: torch.device) -> Iterator[None]:
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


@contextmanager
def _buffers_restored(part: Any) -> Iterator[None]:
    """Give a module its buffers back, with their values: running statistics do not count these calls."""
    modules = list(part.modules()) if isinstance(part, nn.Module) and not isinstance(part, torch.jit.ScriptModule) else []
    kept = [(module, dict(module._buffers)) for module in modules]
    values = [(b, b.clone()) for _, buffers in kept for b in buffers.values() if b is not None]
    try:
        yield
    finally:
        for module, buffers in kept:
            module._buffers.update(buffers)
        for buffer, value in values:
            if not torch.equal(buffer, value):
                buffer.copy_(value)
