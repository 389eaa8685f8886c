"""One improvement of ψ, worked out before it is taken: which gradient, from how many particles, and along which direction.

The plain step is (4) with the gradient of any method. The others need to know where the imagined trajectories went
(`jacrec.engine.diagnostics.visit`): steps measured in actions, and the gate that steps only where the gradient's signal stands out of the
particles' noise, drawing more of them before it gives up.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from jacrec.control.ascent import Direction, ascend
from jacrec.engine.diagnostics import GradientSignal, Groups, Visits, estimate_of, in_groups, visit
from jacrec.engine.methods import METHODS, CompiledAscent, Method, compiled_ascent, compiled_kernels
from jacrec.engine.parameters import parameter_norm, trainable
from jacrec.engine.problem import Problem
from jacrec.engine.rows import put_rows, take_rows
from jacrec.engine.types import PolicyGradient
from jacrec.experimental.natural import natural_step
from jacrec.models.world import policy_action

STEPS = ("plain", "normalised", "fisher", "gauss-newton")
Act = Callable[[nn.Module, Tensor], Tensor]
"""a policy with states (N, d) -> actions (N, m)"""
Draw = Callable[[int], Tensor]
"""noise i = 1, 2, … of a decision beside the problem's own, (N, M, H, *noise_shape): the same each time it is asked for"""


@dataclass(frozen=True)
class Rule:
    """How ψ is stepped."""

    lr: float
    max_grad_norm: float | None = None
    step: str = "plain"
    damping: float = 0.1
    min_signal: float | None = None
    max_particles: int = 64

    @property
    def in_actions(self) -> bool:
        """Whether the step is measured in actions, and so needs what moving each of them is worth."""
        return self.step in ("fisher", "gauss-newton")


@dataclass
class Part:
    """Some real states of a problem, and the step that has been worked out for them."""

    rows: Tensor | None  # indices; None: all
    problem: Problem
    estimate: PolicyGradient
    direction: Direction | None
    particles: int
    snr: Tensor | None = None  # () or (n,)
    allowed: Tensor | None = None

    def take(self, whole: Problem, rule: Rule) -> tuple[Tensor, Tensor]:
        """Take the step: ‖∇Ĵ‖ and the acceptance."""
        done = ascend(self.problem, self.estimate, rule.lr, rule.max_grad_norm, direction=self.direction, allowed=self.allowed)
        if self.rows is not None:
            put_rows(whole, self.rows, self.problem)
        return done


@dataclass(frozen=True)
class Taken:
    """What came of a step: () for a single ψ, (N,) for a `BatchedPolicy`."""

    gradient_norm: Tensor
    accepted: Tensor
    held: Tensor | bool = False
    """finite, and not taken since the signal was too weak"""
    snr: Tensor | float = math.nan
    """signal-to-noise ratio; NaN where it was not measured"""
    particles: Tensor | int = 0


class Proposal(Protocol):
    """A step that has been worked out and not yet been taken."""

    @property
    def value(self) -> Tensor:
        """Ĵ at the present ψ, () or (N,)."""
        ...

    @property
    def act(self) -> Act:
        """How the policy's action is computed, as the step is."""
        ...

    def take(self) -> Taken:
        """ψ moves, where it may."""
        ...


class CompiledProposal:
    """A plain step whose gradient lies in compiled code's memory, and which is taken there."""

    def __init__(self, p: Problem, rule: Rule, ascent: CompiledAscent):
        self.problem, self.rule, self.ascent = p, rule, ascent
        self.value = ascent.value
        self.act: Act = ascent.act

    def take(self) -> Taken:
        """ψ moves, where it may."""
        accepted = self.ascent.step(self.rule.lr, self.rule.max_grad_norm)
        return Taken(self.ascent.norm, accepted, particles=self.problem.M)


class PartedProposal:
    """A step along tensors, for all rows together or in parts."""

    def __init__(self, p: Problem, rule: Rule, parts: list[Part]):
        self.problem, self.rule, self.parts, self.act = p, rule, parts, policy_action

    @property
    def value(self) -> Tensor:
        """Ĵ at the present ψ, () or (N,)."""
        return self._gathered([part.estimate.value for part in self.parts])

    def take(self) -> Taken:
        """ψ moves, where it may."""
        done = [part.take(self.problem, self.rule) for part in self.parts]
        norm, accepted = (self._gathered([pair[i] for pair in done]) for i in (0, 1))
        if self.rule.min_signal is None:
            return Taken(norm, accepted, particles=self.problem.M)
        snr = self._gathered([part.snr for part in self.parts if part.snr is not None])
        counts = [
            torch.full_like(pair[1], part.particles, dtype=torch.long) for pair, part in zip(done, self.parts, strict=True)
        ]
        held = torch.isfinite(norm) & torch.isfinite(self.value) & ~(snr >= self.rule.min_signal)
        return Taken(norm, accepted, held, snr, self._gathered(counts))

    def _gathered(self, values: list[Tensor]) -> Tensor:
        if self.parts[0].rows is None:
            return values[0]
        whole = values[0].new_empty(self.problem.N)
        for part, value in zip(self.parts, values, strict=True):
            assert part.rows is not None
            whole[part.rows] = value
        return whole


def action_of(p: Problem, method: Method) -> Act:
    """How the policy's action is computed where no step was: as `method` would compute the gradient."""
    own = compiled_kernels(method, p)
    return policy_action if own is None else own.action


def propose(p: Problem, method: Method, rule: Rule, draw: Draw | None = None) -> Proposal:
    """Work out the next step of ψ; where the gate finds too little signal it asks `draw` for noise 1, 2, … besides p's own."""
    if rule.min_signal is not None:
        assert draw is not None
        return PartedProposal(p, rule, _gated(p, method, rule, draw))
    if rule.step == "plain":
        ascent = compiled_ascent(method, p)
        if ascent is not None:
            return CompiledProposal(p, rule, ascent)
    if not rule.in_actions:
        estimate = method.gradient(p)
        return PartedProposal(p, rule, [Part(None, p, estimate, _direction(p, estimate, None, rule), p.M)])
    visits = _visit(p, method)
    estimate = estimate_of(p, visits)
    return PartedProposal(p, rule, [Part(None, p, estimate, _direction(p, estimate, visits, rule), p.M)])


def _visit(p: Problem, method: Method) -> Visits:
    """Visits by the chain that the method would use: the plain one if it is named."""
    return visit(p, fused=method != METHODS["adjoint"])


def _gated(p: Problem, method: Method, rule: Rule, draw: Draw) -> list[Part]:
    """Twice as many particles as long as the signal is too weak and they may be had, row by row.

    Rows that have enough are set apart as they are: what a row gets does not depend on the others. Steps along the gradient
    weigh groups of particles against each other, so that any method serves; steps in actions the particles themselves.
    """
    assert rule.min_signal is not None

    def look(part: Problem) -> Visits | Groups:
        return _visit(part, method) if rule.in_actions else in_groups(part, method)

    parts: list[Part] = []
    part, seen, draws, most = p, look(p), 1, max(rule.max_particles // p.M, 1)
    pending = torch.arange(p.N, device=p.state.device)
    while True:
        found = seen.signal(part)
        enough = found.snr >= rule.min_signal
        hopeless = ~torch.isfinite(found.square + found.estimate.value)
        settled = enough | hopeless | (draws == most)
        if bool(settled.all()):
            parts.append(_gated_part(part, seen, found, enough, rule, None if part is p else pending))
            return parts
        if bool(settled.any()):
            here, rest = (x.nonzero().squeeze(-1) for x in (settled, ~settled))
            ready = take_rows(part, here), seen.rows(here), found.rows(here), enough[here]
            parts.append(_gated_part(*ready, rule, pending[here]))
            part, seen, pending = take_rows(part, rest), seen.rows(rest), pending[rest]
        for i in range(draws, min(2 * draws, most)):
            noise = draw(i)
            seen = seen.joined(look(replace(part, noise=noise if part is p else noise[pending])))  # pyright: ignore[reportArgumentType]
        draws = min(2 * draws, most)


def _gated_part(
    p: Problem, seen: Visits | Groups, found: GradientSignal, enough: Tensor, rule: Rule, rows: Tensor | None
) -> Part:
    direction = _direction(p, found.estimate, seen if isinstance(seen, Visits) else None, rule)
    return Part(rows, p, found.estimate, direction, seen.particles, found.snr, enough)


def _direction(p: Problem, estimate: PolicyGradient, visits: Visits | None, rule: Rule) -> Direction | None:
    """Where `rule.step` leads; the visits are for steps that are measured in actions."""
    if rule.step == "plain":
        return None
    counted = trainable(p.policy)
    if rule.step == "normalised":
        gradient = {name: estimate.gradient[name] for name in counted}
        return Direction(gradient, parameter_norm(gradient, batched=p.batched))
    assert visits is not None
    natural = natural_step(p, visits, rule.damping, counted)
    return Direction(natural.step, natural.length if rule.step == "fisher" else None)
