"""The signal gate: step only where the gradient's signal stands out of the particles' noise, row by row."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from jacrec.control.config import Draw, MPCConfig
from jacrec.control.update import TorchUpdate
from jacrec.engine.diagnostics import GradientSignal, Visits
from jacrec.engine.methods import Method, action_function
from jacrec.engine.problem import Problem
from jacrec.engine.types import GateRecord, UpdateResult
from jacrec.experimental.groups import Groups
from jacrec.experimental.rows import put_rows, take_rows
from jacrec.experimental.steps import PlainStep
from jacrec.models.world import World
from jacrec.util.errors import check_fields, expect_count, expect_positive


@dataclass(frozen=True)
class Gated:
    """Take `step` only where the gradient's signal-to-noise ratio ‖∇Ĵ‖² / E‖error‖² reaches `min_signal`.

    Elsewhere twice as many particles are drawn, up to `max_particles`; if the ratio is still too small, ψ is left unchanged.
    Rows of a `BatchedPolicy` are gated one by one: what a row gets does not depend on the others. Steps along the gradient
    estimate the noise from groups of particles, through any method; `FisherStep` from the particles themselves.
    """

    min_signal: float
    """smallest signal-to-noise ratio of a step"""
    max_particles: int | None = None
    """largest number of particles; None: four times those of the controller"""
    step: PlainStep = field(default_factory=PlainStep)
    """the step that is gated"""

    def __post_init__(self):
        check_fields(self)
        expect_positive("min_signal", self.min_signal)

    def check(self, config: MPCConfig, world: World | None = None) -> None:
        """ValueError for settings or a world that it cannot serve."""
        if config.particles < 2:
            raise ValueError(
                "particles: expected at least 2 with min_signal (the noise is estimated from their variance), "
                f"got {config.particles}"
            )
        if self.max_particles is not None:
            expect_count("max_particles", self.max_particles, config.particles)
        self.step.check(config, world)

    def compute(self, problem: Problem, method: Method, config: MPCConfig, draw: Draw) -> "GatedUpdate":
        """The update, with more particles where the signal is too weak."""
        most = 4 * config.particles if self.max_particles is None else self.max_particles
        most = max(most // problem.M, 1)
        parts: list[Part] = []
        p, seen, draws = problem, self.step.sample(problem, method), 1
        pending = torch.arange(p.N, device=p.state.device)
        while True:
            found = seen.signal(p)
            enough = found.snr >= self.min_signal
            hopeless = ~torch.isfinite(found.square + found.estimate.value)
            settled = enough | hopeless | (draws == most)
            if bool(settled.all()):
                parts.append(self._part(p, seen, found, enough, config, None if p is problem else pending))
                return GatedUpdate(problem, parts, self.min_signal, method)
            if bool(settled.any()):
                here, rest = (x.nonzero().squeeze(-1) for x in (settled, ~settled))
                ready = take_rows(p, here), seen.rows(here), found.rows(here), enough[here]
                parts.append(self._part(*ready, config, pending[here]))
                p, seen, pending = take_rows(p, rest), seen.rows(rest), pending[rest]
            for i in range(draws, min(2 * draws, most)):
                noise = draw(i) if p is problem else draw(i)[pending]
                seen = seen.joined(self.step.sample(replace(p, noise=noise), method))  # pyright: ignore[reportArgumentType]
            draws = min(2 * draws, most)

    def _part(
        self, p: Problem, seen: Groups | Visits, found: GradientSignal, enough: Tensor, config: MPCConfig, rows: Tensor | None
    ) -> "Part":
        direction = self.step.direction(p, found.estimate, seen)
        update = TorchUpdate(p, found.estimate, config.lr, config.max_grad_norm, direction, enough)
        return Part(rows, update, found.snr, seen.particles)


@dataclass(frozen=True)
class Part:
    """The update of some rows, which needed the same number of particles."""

    rows: Tensor | None  # indices; None: all
    update: TorchUpdate
    snr: Tensor  # () or (n,)
    particles: int


class GatedUpdate:
    """An `Update` of all rows, in parts."""

    def __init__(self, problem: Problem, parts: list[Part], min_signal: float, method: Method):
        self.problem, self.parts, self.min_signal = problem, parts, min_signal
        self.value = self._gathered([part.update.value for part in parts])
        self._action = action_function(method, problem)

    def apply(self) -> UpdateResult:
        results = []
        for part in self.parts:
            results.append(part.update.apply())
            if part.rows is not None:
                put_rows(self.problem, part.rows, part.update.problem)
        norm = self._gathered([result.gradient_norm for result in results])
        accepted = self._gathered([result.accepted for result in results])
        snr = self._gathered([part.snr for part in self.parts])
        counts = [torch.full_like(part.snr, part.particles, dtype=torch.long) for part in self.parts]
        gated = torch.isfinite(norm) & torch.isfinite(self.value) & ~(snr >= self.min_signal)
        return UpdateResult(self.value, norm, accepted, GateRecord(snr, self._gathered(counts), gated))

    def action(self, policy: nn.Module, state: Tensor) -> Tensor:
        return self._action(policy, state)

    def _gathered(self, values: list[Tensor]) -> Tensor:
        if self.parts[0].rows is None:
            return values[0]
        whole = values[0].new_empty(self.problem.N)
        for part, value in zip(self.parts, values, strict=True):
            assert part.rows is not None
            whole[part.rows] = value
        return whole
