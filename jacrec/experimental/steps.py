"""Steps of another length or direction than the plain one, in the pieces that the signal gate needs."""

from dataclasses import dataclass, field

from jacrec.control.ascent import Direction
from jacrec.control.config import Draw, MPCConfig
from jacrec.control.update import TorchUpdate
from jacrec.engine.diagnostics import Visits, estimate_of, visit
from jacrec.engine.methods import Auto, Method
from jacrec.engine.parameters import parameter_norm, trainable
from jacrec.engine.problem import Problem
from jacrec.engine.types import PolicyGradient, Update
from jacrec.experimental.groups import Groups, in_groups
from jacrec.experimental.natural import natural_step
from jacrec.models.dynamics import MultiStepDynamics
from jacrec.models.world import World
from jacrec.util.errors import check_fields, expect_positive


@dataclass(frozen=True)
class PlainStep:
    """The step α ∇Ĵ (4), for `Gated` and as the base of the other steps. Ungated, `jacrec.MPC` takes it by default."""

    def check(self, config: MPCConfig, world: World | None = None) -> None:
        """ValueError for settings or a world that it cannot serve."""

    def estimate(self, p: Problem, method: Method) -> PolicyGradient:
        """The objective and its gradient."""
        return method.gradient(p)

    def sample(self, p: Problem, method: Method) -> Groups | Visits:
        """The same, with its variation over the problem's particles."""
        return in_groups(p, lambda part: self.estimate(part, method))

    def direction(self, p: Problem, estimate: PolicyGradient, seen: Groups | Visits | None) -> Direction | None:
        """The step's direction and length; None: the gradient itself."""
        return None

    def compute(self, problem: Problem, method: Method, config: MPCConfig, draw: Draw) -> Update:
        """The next update of ψ."""
        estimate = self.estimate(problem, method)
        direction = self.direction(problem, estimate, None)
        return TorchUpdate(problem, estimate, config.lr, config.max_grad_norm, direction)


@dataclass(frozen=True)
class NormalisedStep(PlainStep):
    """Step by α along the unit gradient, whatever the scale of the critic: lr is the length of the step in ψ."""

    of: PlainStep = field(default_factory=PlainStep)
    """whose gradient is normalised, e.g. `Decoupled()`"""

    def check(self, config: MPCConfig, world: World | None = None) -> None:
        _expect_no_clipping(config, "NormalisedStep")
        self.of.check(config, world)

    def estimate(self, p: Problem, method: Method) -> PolicyGradient:
        return self.of.estimate(p, method)

    def direction(self, p: Problem, estimate: PolicyGradient, seen: Groups | Visits | None) -> Direction:
        gradient = {name: estimate.gradient[name] for name in trainable(p.policy)}
        return Direction(gradient, parameter_norm(gradient, batched=p.batched))


@dataclass(frozen=True)
class FisherStep(PlainStep):
    """Natural-gradient step of a Gaussian policy (`jacrec.experimental.natural`): (G + λ)⁻¹ ∇Ĵ, G from the visited actions.

    lr is the root mean squared change of the visited actions, to first order.
    """

    damping: float = 0.1
    """λ as a share of the mean squared sensitivity of an action component to ψ"""

    def __post_init__(self):
        check_fields(self)
        expect_positive("damping", self.damping)

    def check(self, config: MPCConfig, world: World | None = None) -> None:
        _expect_no_clipping(config, "FisherStep")
        if config.method not in ("auto", "adjoint"):
            raise ValueError(
                f'method: expected "auto" or "adjoint" with FisherStep, a form of the adjoint gradient, got {config.method!r}'
            )
        expect_one_transition(world, "FisherStep")

    def sample(self, p: Problem, method: Method) -> Visits:
        return visit(p, fused=isinstance(method, Auto))

    def direction(self, p: Problem, estimate: PolicyGradient, seen: Groups | Visits | None) -> Direction:
        assert isinstance(seen, Visits)
        natural = natural_step(p, seen, self.damping, trainable(p.policy))
        return Direction(natural.step, natural.length)

    def compute(self, problem: Problem, method: Method, config: MPCConfig, draw: Draw) -> Update:
        visits = self.sample(problem, method)
        estimate = estimate_of(problem, visits)
        return TorchUpdate(problem, estimate, config.lr, direction=self.direction(problem, estimate, visits))


def expect_one_transition(world: World | None, name: str) -> None:
    """ValueError for a world model that predicts all steps at once."""
    if world is not None and isinstance(world.dynamics, MultiStepDynamics):
        raise ValueError(
            f"world: expected dynamics with a single transition for {name}, got MultiStepDynamics; use a one-step world model"
        )


def _expect_no_clipping(config: MPCConfig, name: str) -> None:
    if config.units != "absolute":
        raise ValueError(f'units: expected "absolute" with {name}, whose length is lr whatever the scale, got {config.units!r}')
    if config.max_grad_norm is not None:
        raise ValueError(
            f"max_grad_norm: expected None with {name}, whose length is lr whatever the gradient, got {config.max_grad_norm}"
        )
