"""The settings of the controller, and the rule by which it updates ψ."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from jacrec.engine.methods import METHODS, Method
from jacrec.engine.problem import Problem
from jacrec.engine.types import Update
from jacrec.models.world import World
from jacrec.util.errors import check_fields, expect_count, expect_one_of, expect_positive, expect_seed

Draw = Callable[[int], Tensor]
"""further noise i = 1, 2, … of a decision, shaped as the problem's own; the same for every update of the decision"""


@dataclass(frozen=True)
class MPCConfig:
    """Settings of the controller; the defaults are those of `mpc_update`."""

    horizon: int = 5
    """H imagined steps per trajectory; 0: ascent on the critic at the observed state, without world model (Algorithm 1)"""
    particles: int = 16
    """M imagined trajectories per decision (section 4.2)"""
    updates: int = 1
    """E gradient steps per decision (4)"""
    lr: float = 5e-5
    """step size α of (4)"""
    anchor: float = 0.0
    """β of the penalty β Σ_j γ^j ‖π_ψ(s̃_j) − π_ψ₀(s̃_j)‖² on leaving the pretrained policy in imagination (`jacrec.Anchor`);
    0: none"""
    terminal: str = "policy"
    """whose action the last term of the imagined return takes, Q(s̃_H, ·): "policy", π_ψ's, as in the paper; "base", that of the
    pretrained π_ψ₀, so that the ascent cannot seek actions that the critic overrates there (`jacrec.Anchor`); needs horizon >= 1"""
    units: str = "absolute"
    """what lr, anchor and max_grad_norm refer to: "absolute", Ĵ itself; "value", Ĵ / mean|Q|, so that one setting serves critics
    of any scale; needs `World.value_scale`, which training records"""
    max_grad_norm: float | None = None
    """scale longer gradients down to this norm; None: no clipping"""
    trust_radius: float | None = None
    """largest ‖ψ − ψ₀‖ from the pretrained parameters; ψ is projected onto the ball; None: unbounded"""
    max_action_change: float | None = None
    """largest |a − π_ψ₀(s)| per component; an action further from the pretrained policy's is clipped to that box; None:
    unbounded"""
    carry: str = "episode"
    """what becomes of ψ between decisions: "episode" keeps it until `new_episode` restores the pretrained parameters,
    "persist" keeps it across episodes, "step" restarts every decision from the pretrained parameters"""
    deadline_ms: float | None = None
    """time for a decision in milliseconds; an update is begun only if it is expected to end in time, and the best ψ so far
    answers; None: no deadline"""
    method: str = "auto"
    """how the gradient is computed: "auto", "forward", "adjoint", "fused-forward", "fused-adjoint", "multistep",
    "fused-multistep", "autograd" or "finite-difference"; the gradient is the same"""
    seed: int = 0
    """seed of the imagination's noise"""

    def __post_init__(self):
        check_fields(self)
        expect_seed("seed", self.seed)
        check_settings(self.horizon, self.particles, self.updates, self.lr, self.max_grad_norm)
        if not isinstance(self.anchor, int | float) or not 0 <= self.anchor < math.inf:
            raise ValueError(f"anchor: expected a finite β >= 0, got {self.anchor!r}")
        expect_one_of("terminal", self.terminal, ("policy", "base"))
        if self.terminal == "base" and self.horizon == 0:
            raise ValueError(
                'terminal: expected "policy" with horizon=0, whose only term Q(s, π_ψ₀(s)) would not depend on ψ, got "base"; '
                "imagine a step (horizon=1), or leave terminal out"
            )
        expect_one_of("units", self.units, ("absolute", "value"))
        expect_one_of("carry", self.carry, ("episode", "persist", "step"))
        expect_one_of("method", self.method, METHODS)
        for name in ("trust_radius", "max_action_change", "deadline_ms"):
            if getattr(self, name) is not None:
                expect_positive(name, getattr(self, name))

    @property
    def anchored(self) -> bool:
        """Whether the pretrained policy takes part in the imagination: its penalty, or its action in the last term."""
        return self.anchor > 0 or self.terminal == "base"

    def in_absolute_units(self, value_scale: float | None) -> "MPCConfig":
        """The same settings with units="absolute".

        Raises:
            ValueError: units="value" without a value scale.
        """
        if self.units == "absolute":
            return self
        if value_scale is None:
            raise ValueError(
                'units: expected "absolute" for a world without value_scale, got "value"; give World(value_scale=...), '
                "e.g. jacrec.value_scale(policy, critic, states); training records it, but earlier versions did not"
            )
        norm = None if self.max_grad_norm is None else self.max_grad_norm * value_scale
        return replace(self, lr=self.lr / value_scale, anchor=self.anchor * value_scale, max_grad_norm=norm, units="absolute")

    def make_update(self) -> "UpdateRule | None":
        """The update rule that these settings describe; None: the plain step (4)."""
        return None


class UpdateRule(Protocol):
    """How a controller updates ψ other than by the plain step (4), e.g. by a rule from `jacrec.experimental`."""

    def check(self, config: MPCConfig, world: World | None = None) -> None:
        """ValueError for settings or a world that it cannot serve."""
        ...

    def compute(self, problem: Problem, method: Method, config: MPCConfig, draw: Draw) -> Update:
        """The next update of ψ."""
        ...


def check_settings(horizon: int, particles: int, updates: int, lr: float, max_grad_norm: float | None) -> None:
    """ValueError for a setting of Algorithm 1 outside its range."""
    expect_count("horizon", horizon, 0)
    expect_count("particles", particles, 1)
    expect_count("updates", updates, 0)
    if not isinstance(lr, int | float) or not 0 <= lr < math.inf:
        raise ValueError(f"lr: expected a finite step size >= 0 (gradient ascent), got {lr!r}")
    if max_grad_norm is not None:
        expect_positive("max_grad_norm", max_grad_norm)
