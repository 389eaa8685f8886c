"""The gradient for `Auto` on a GPU: the form by size, the first result of a kind checked, plain torch where a kernel fails.

Explicit methods call `jacrec.kernels.gradient`, which raises.
"""

import logging
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch

import jacrec.engine.gradient
from jacrec.engine.problem import Problem
from jacrec.engine.types import PolicyGradient
from jacrec.kernels import kept
from jacrec.kernels.failures import KernelBuildError
from jacrec.kernels.launch import choose_tile, multiprocessors, net, plan
from jacrec.kernels.rollout import networks, rollout_plan, rollout_unsupported_reason, worthwhile
from jacrec.models.dynamics import ChainDynamics

OPERATIONS = {"forward": (122, 60), "adjoint": (115, 49)}
"""kernels on the device at H = 0 and for each further step: chains and torch's operations, as counted with the default networks
by tests/kernels/test_triton_operations.py. A rollout in one launch has 32 + H"""
RECORDED, EAGER, LAYER = 2.5e-6, 6e-6, 3e-6
"""seconds for an operation in a CUDA graph, one launched from the host, and a layer of a chain. Estimates, not measured"""
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
"""relative difference from plain torch below which a kernel is taken to be right. Measured between float32 and float64
(hopper's sizes, K 10, H 5, M 1 to 64, 90 seeds): median 3e-7, 3e-3 once, where a pre-activation near a kink changes sign; so
a mismatch is looked at again with other noise"""
LOOKS = 3
"""problems on which a kernel has to fail before it is refused"""
_log = logging.getLogger("jacrec")
_lock = threading.Lock()
_verdicts: dict[Hashable, str | None] = {}
"""by kind of problem: why its kernels are not used; None for those that agree with plain torch"""


@dataclass(frozen=True)
class Choice:
    """How a problem's gradient is computed."""

    form: str
    """"rollout" (one launch), "forward" or "adjoint" (a launch or two per step)"""
    kind: Hashable
    """what the compiler and the tile depend on: problems of one kind use the same kernels"""


def auto_gradient(p: Problem, forms: Mapping[str, Callable[[Problem], PolicyGradient]]) -> PolicyGradient:
    """∇_ψ Ĵ by the form expected to be fastest, or by plain torch if its kernels cannot be built or have been found wrong.

    The first result of each kind of problem is compared with plain torch. Errors of a running GPU are raised.
    """
    p = kept.examined(p)
    choice = choose(p)
    if _verdicts.get(choice.kind) is not None:
        return plain(p)
    compute = forms[choice.form]
    try:
        result = compute(p)
    except KernelBuildError as error:
        refuse(p, choice, f"the kernel cannot be built: {error}")
        return plain(p)
    if choice.kind not in _verdicts:
        reason = disagreement(p, compute, result)
        if reason is not None:
            refuse(p, choice, reason)
            return plain(p)
        _verdicts.setdefault(choice.kind, None)  # another thread may have refused it
    return result


def choose(p: Problem) -> Choice:
    """One launch wherever all of its programs run at once, else the chains with the smaller expected time."""
    facts = kept.facts(p)
    if facts is None:
        return _choose(p, recorded=False)
    sizes = p.N, p.M, p.H, p.world.discount
    if sizes not in facts.choices:
        if len(facts.choices) >= 256:
            facts.choices.clear()
        facts.choices[sizes] = _choose(p, recorded=p.state.device.type == "cuda")
    return facts.choices[sizes]


def _choose(p: Problem, recorded: bool) -> Choice:
    if rollout_unsupported_reason(p) is None and worthwhile(p):
        f = cast(ChainDynamics, p.world.dynamics)
        shape = rollout_plan(p, f.action_dim, "ieee").shape
        structures = tuple(net(mlp) for mlp in networks(p).values())
        return Choice("rollout", kind(p, "rollout", shape, structures, p.H))
    expected = expected_seconds(p, recorded)
    form = min(expected, key=lambda form: expected[form])
    tile = choose_tile(p.N * p.M, _tangents(p) if form == "forward" else 0, p.state.dtype, p.state.device)
    # a step's tangents decide how many rows a particle has
    return Choice(form, kind(p, form, tile, p.H if form == "forward" else None))


def kind(p: Problem, form: str, *of_form: Hashable) -> Hashable:
    """What the kernels of a form depend on."""
    f = cast(ChainDynamics, p.world.dynamics)
    chain = (net(f.denoiser.mlp), f.state_dim, f.action_dim, f.diffusion_steps, f.noises, f.target)
    return form, p.state.device, p.state.dtype, p.batched, chain, *of_form


def expected_seconds(p: Problem, recorded: bool) -> dict[str, float]:
    """Estimated time of the forward and the adjoint form with separate chains: operations, and layers behind each other."""
    f = cast(ChainDynamics, p.world.dynamics)
    room = multiprocessors(p.state.device)
    layers = p.H * f.diffusion_steps * (len(f.denoiser.mlp.hidden) + 1)
    seconds = {}
    for form, T, passes in (("forward", _tangents(p), 1), ("adjoint", 0, 2)):
        tile = choose_tile(p.N * p.M, T, p.state.dtype, p.state.device)
        cut = plan(tile, p.N * p.M, T, max(f.denoiser.mlp.hidden), "ieee", p.state.device, all_at_once=True)
        waves = -(-cut.programs * cut.pieces // room) * cut.shape.rows / 16
        base, each = OPERATIONS[form]
        seconds[form] = (base + each * p.H) * (RECORDED if recorded else EAGER) + passes * layers * waves * LAYER
    return seconds


def _tangents(p: Problem) -> int:
    """Tangents of the last and most expensive step of the forward form."""
    f = cast(ChainDynamics, p.world.dynamics)
    return min(p.H * f.action_dim, f.state_dim + f.action_dim)


def plain(p: Problem, *, recompute: bool = False) -> PolicyGradient:
    """The same gradient by torch's operations."""
    return jacrec.engine.gradient.adjoint_gradient(p, recompute=recompute)


def disagreement(p: Problem, compute: Callable[[Problem], PolicyGradient], result: PolicyGradient) -> str | None:
    """Why the kernels are wrong for a kind of problem, from their first result; None if they agree with plain torch.

    Where plain torch has no finite answer, or no memory for one, nothing can be said against them.
    """
    worst = 0.0
    for look in range(LOOKS):
        q = p if look == 0 else replace(p, noise=p.noise * (-1.0) ** look / look)
        got = result if look == 0 else compute(q)
        try:
            expected = plain(q, recompute=True)
        except torch.OutOfMemoryError:
            return None
        error = distance(got, expected)
        if error is None or error <= TOLERANCE[p.state.dtype]:
            return None
        worst = max(worst, error)
    return f"the kernel's gradient differs from plain torch's by {worst:.1e}, expected at most {TOLERANCE[p.state.dtype]:.0e}"


def distance(got: PolicyGradient, expected: PolicyGradient) -> float | None:
    """‖got − expected‖ / ‖expected‖ over value and gradient; None if the expected one is not finite."""
    pairs = [(got.value, expected.value), *((got.gradient[k], g) for k, g in expected.gradient.items())]
    x, y = (torch.cat([pair[i].detach().double().reshape(-1) for pair in pairs]) for i in (0, 1))
    scale = float(y.norm())
    if not torch.isfinite(y).all():
        return None
    error = float((x - y).norm()) / max(scale, 1e-30)
    return error if error == error else float("inf")


def refuse(p: Problem, choice: Choice, reason: str) -> None:
    """Remember that a kind of problem is for plain torch, and log it once."""
    with _lock:
        if _verdicts.get(choice.kind) is not None:
            return
        _verdicts[choice.kind] = reason
    size = f"N {p.N}, M {p.M}, H {p.H}, {str(p.state.dtype).removeprefix('torch.')} on {p.state.device}"
    _log.warning("Auto takes plain torch instead of the fused %s form for %s: %s", choice.form, size, reason)


def refusals() -> list[str]:
    """Why kinds of problems were refused in this process."""
    return [f"{kind[0]} form: {reason}" for kind, reason in _verdicts.items() if reason is not None]  # pyright: ignore


def forget() -> None:
    """Forget all verdicts: kernels are compiled and compared again."""
    with _lock:
        _verdicts.clear()
