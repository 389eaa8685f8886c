"""Settings of the experimental update rules, as the command line and YAML files name them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from jacrec.control.config import MPCConfig, UpdateRule
from jacrec.experimental.decoupled import LOCAL, WEIGHTS, Decoupled
from jacrec.experimental.gate import Gated
from jacrec.experimental.steps import FisherStep, NormalisedStep, PlainStep
from jacrec.util.content import mismatch
from jacrec.util.errors import check_fields, expect_count, expect_one_of, expect_positive

STEPS = ("plain", "normalised", "fisher")
OBJECTIVES = ("return", *(f"decoupled-{local}" for local in LOCAL))
REMOVED = {"think_every": 1, "max_growth": None, "growth_every": 10, "growth_particles": 4}
"""settings of earlier versions, with the values at which they had no effect"""


@dataclass(frozen=True)
class ExperimentalConfig:
    """Settings of an update rule of `jacrec.experimental`; the defaults are the plain gradient step of `MPCConfig`."""

    min_signal: float | None = None
    """smallest signal-to-noise ratio ‖∇Ĵ‖² / E‖error‖² of a gradient that is stepped along; below it twice as many particles are
    drawn, up to `max_particles`, then ψ is left unchanged; None: no gate"""
    max_particles: int | None = None
    """largest number of particles for `min_signal`; None: four times `particles`"""
    step: str = "plain"
    """"plain" is α ∇Ĵ (4); "normalised" is α times the unit gradient; "fisher" is the natural gradient of a Gaussian policy,
    with α the root mean squared change of the visited actions (`jacrec.experimental.natural`)"""
    damping: float = 0.1
    """λ of "fisher", as a share of the mean squared sensitivity of an action component to ψ"""
    objective: str = "return"
    """"return" is Ĵ; "decoupled-critic" and "decoupled-one-step" improve each imagined action by Q_a or by r_a + γ F_aᵀ V_s,
    without differentiation through time (`jacrec.experimental.decoupled`)"""
    objective_weights: str = "discounted"
    """weights of the imagined steps in a decoupled objective: "discounted" (γ^j) or "uniform\""""

    def __post_init__(self):
        check_fields(self)
        expect_one_of("step", self.step, STEPS)
        expect_positive("damping", self.damping)
        expect_one_of("objective", self.objective, OBJECTIVES)
        expect_one_of("objective_weights", self.objective_weights, WEIGHTS)
        if self.min_signal is not None:
            expect_positive("min_signal", self.min_signal)
        if self.max_particles is not None:
            expect_count("max_particles", self.max_particles, 1)
            if self.min_signal is None:
                raise ValueError(
                    f"max_particles: expected None without min_signal, got {self.max_particles}; set min_signal too"
                )
        if self.step == "fisher" and self.objective != "return":
            raise ValueError(
                f'objective: expected "return" with step="fisher", a form of the adjoint gradient, got {self.objective!r}'
            )

    def make_update(self) -> UpdateRule | None:
        """The update rule that these settings describe; None: the plain step (4)."""
        step = PlainStep()
        if self.objective != "return":
            step = Decoupled(self.objective.removeprefix("decoupled-"), self.objective_weights)
        if self.step != "plain":
            step = NormalisedStep(step) if self.step == "normalised" else FisherStep(self.damping)
        if self.min_signal is not None:
            return Gated(self.min_signal, self.max_particles, step)
        return None if step == PlainStep() else step


@dataclass(frozen=True)
class ExperimentalMPCConfig(MPCConfig):
    """Settings of the controller with an update rule of `jacrec.experimental`."""

    experimental: ExperimentalConfig = field(default_factory=ExperimentalConfig)
    """settings of the update rule"""

    def __post_init__(self):
        super().__post_init__()
        update = self.make_update()
        if update is not None:
            update.check(self)

    def make_update(self) -> UpdateRule | None:
        """The update rule that these settings describe; None: the plain step (4)."""
        return self.experimental.make_update()

    def simplified(self) -> MPCConfig:
        """A plain `MPCConfig` if the experimental settings are all defaults."""
        own = {f.name: getattr(self, f.name) for f in fields(MPCConfig)}
        return MPCConfig(**own) if self.experimental == ExperimentalConfig() else self


def with_experimental(config: MPCConfig, experimental: ExperimentalConfig) -> MPCConfig:
    """The controller's settings together with those of an update rule; `config` itself if the latter are defaults.

    Raises:
        ValueError: they cannot be combined, or `config` has experimental settings already.
    """
    if experimental == ExperimentalConfig():
        return config
    own = {f.name: getattr(config, f.name) for f in fields(MPCConfig)}
    if experimental_of(config) not in (ExperimentalConfig(), experimental):
        raise ValueError(f"experimental: expected one group of settings, got {experimental_of(config)} and {experimental}")
    return ExperimentalMPCConfig(**own, experimental=experimental)


def experimental_of(config: MPCConfig) -> ExperimentalConfig:
    """The experimental settings of a controller."""
    return config.experimental if isinstance(config, ExperimentalMPCConfig) else ExperimentalConfig()


def current_settings(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A controller's settings without those of earlier versions that have no effect.

    Raises:
        ValueError: a setting that has been removed, or that now belongs to the group `experimental`.
    """
    moved = {f.name: f.default for f in fields(ExperimentalConfig)}
    own = {k: v for k, v in content.items() if not (k in REMOVED | moved and v == (REMOVED | moved)[k])}
    for name in own:
        if name in moved:
            raise ValueError(
                f"{where}.{name}: expected it in the group experimental, as experimental.{name}, got {own[name]!r} here"
            )
        if name in REMOVED:
            raise ValueError(f"{where}.{name}: this setting has been removed, since no study showed a gain; leave it out")
    return own


def read_mpc_config(content: Mapping[str, Any], where: str = "mpc") -> MPCConfig:
    """The settings that `dataclasses.asdict` made of a controller, in this version or an earlier one.

    Raises:
        ValueError: as `current_settings`; an unknown setting, or a value of the wrong type.
    """
    own = current_settings(content, where)
    wrong = mismatch(own, ExperimentalMPCConfig)
    if wrong:
        raise ValueError(f"{where}: expected {wrong}")
    for kind, given in ((ExperimentalMPCConfig, own), (ExperimentalConfig, own.get("experimental", {}))):
        unknown = sorted(given.keys() - {f.name for f in fields(kind)})
        if unknown:
            raise ValueError(f"{where}: expected settings of MPC, got {', '.join(unknown)}")
    experimental = ExperimentalConfig(**own.pop("experimental", {}))
    return with_experimental(MPCConfig(**own), experimental)
