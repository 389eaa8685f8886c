"""The settings of a planner."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from jacrec.util.errors import expect_count, expect_one_of, expect_positive

COMMON = ("planner", "horizon", "max_action_change", "seed")
USES = {
    "mppi": ("particles", "samples", "iterations", "noise_std", "temperature", "carry"),
    "cem": ("particles", "samples", "iterations", "noise_std", "elites", "least_std", "carry"),
    "best-of-return": ("particles", "samples", "noise_std", "noisy_steps"),
    "best-of-q": ("samples", "noise_std"),
    "action-gradient": ("particles", "iterations", "lr", "normalise", "carry"),
}
"""the settings that each planner looks at, beside the common ones"""
PLANNERS = tuple(USES)


@dataclass(frozen=True)
class PlannerConfig:
    """Who plans, and how. Which settings a planner looks at stands in `USES`; it leaves the others alone."""

    planner: str = "mppi"
    """mppi (weighted mean of noisy plans, Williams et al. 2017), cem (refitted to the best plans), best-of-return (the best of
    perturbed policy rollouts), best-of-q (the best of perturbed actions by Q(s_t, a), no world model) or action-gradient
    (ascent on the plan through the world model)"""
    horizon: int = 5
    """H imagined steps, closed by γ^H Q(s̃_H, π(s̃_H)); best-of-q imagines none, it is 0 there"""
    particles: int = 4
    """M noise draws on which every candidate is imagined, the same for all of them; 1 is enough for deterministic dynamics"""
    samples: int = 16
    """candidates per iteration, the policy's own rollout among those of the first"""
    iterations: int = 1
    """rounds of sampling (mppi, cem), or gradient steps (action-gradient)"""
    noise_std: float = 0.3
    """standard deviation of the noise on actions in [-1, 1]; cem begins with it"""
    temperature: float = 0.3
    """mppi: a candidate weighs exp(J / (temperature · standard deviation of the candidates' J)), whatever the rewards' scale"""
    elites: int = 4
    """cem: candidates that the next mean and standard deviation are taken from"""
    least_std: float = 0.05
    """cem: the standard deviation of the candidates never falls below it"""
    noisy_steps: int = 1
    """best-of-return: first actions that are perturbed; the policy takes all later ones"""
    lr: float = 0.01
    """action-gradient: step size of plain ascent on a_0 … a_{H-1}"""
    normalise: bool = False
    """action-gradient: divide the gradient by its norm, so that a step has the length `lr`"""
    carry: str = "episode"
    """"episode": a decision begins from the last plan, shifted by one step, and `new_episode` forgets it (mppi, cem,
    action-gradient); "step": every decision begins from the policy's own rollout"""
    max_action_change: float | None = None
    """largest |a − π(s)| per component, as of `MPCConfig`: an action further from the policy's is drawn back into that box"""
    seed: int = 0
    """of the imagination's noise and of the candidates"""

    def __post_init__(self):
        expect_one_of("planner", self.planner, PLANNERS)
        if self.planner == "best-of-q":
            # no steps are imagined, and so all particles are the same number
            for name, value in (("horizon", 0), ("particles", 1)):
                if getattr(self, name) not in (value, getattr(PlannerConfig, name)):
                    raise ValueError(
                        f"{name}: expected {value} with planner 'best-of-q', which imagines no step, got "
                        f"{getattr(self, name)!r}; use 'best-of-return' to look ahead"
                    )
                object.__setattr__(self, name, value)
        expect_count("horizon", self.horizon, 0 if self.planner in ("best-of-return", "best-of-q") else 1)
        for name, lowest in (("particles", 1), ("samples", 2), ("iterations", 1), ("elites", 1), ("noisy_steps", 1)):
            expect_count(name, getattr(self, name), lowest)
        for name in ("noise_std", "temperature", "least_std", "lr"):
            expect_positive(name, getattr(self, name))
        if self.max_action_change is not None:
            expect_positive("max_action_change", self.max_action_change)
        expect_one_of("carry", self.carry, ("episode", "step"))
        if not isinstance(self.normalise, bool):
            raise ValueError(f"normalise: expected True or False, got {self.normalise!r}")
        if self.planner == "cem" and self.elites > self.samples:
            raise ValueError(f"elites: expected at most {self.samples} (samples), got {self.elites}")
        if self.planner == "best-of-return" and self.noisy_steps > self.horizon + 1:
            raise ValueError(f"noisy_steps: expected at most {self.horizon + 1} (a_0 … a_H), got {self.noisy_steps}")

    @property
    def used(self) -> tuple[str, ...]:
        """The names of the settings that this planner looks at."""
        return (*COMMON, *USES[self.planner])

    @property
    def settings(self) -> dict[str, Any]:
        """What this planner looks at, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name in self.used}

    @property
    def rounds(self) -> int:
        """How often candidates are drawn in a decision."""
        return self.iterations if self.planner in ("mppi", "cem") else 1

    @property
    def planned_steps(self) -> int:
        """L, the actions a_0 … a_{L-1} of a plan that are its own; the policy takes the others."""
        return {"best-of-return": self.noisy_steps, "best-of-q": 1}.get(self.planner, self.horizon)

    def of(self, planner: str) -> "PlannerConfig":
        """The same settings for another planner."""
        expect_one_of("planner", planner, PLANNERS)
        if "best-of-q" in (planner, self.planner) and planner != self.planner:
            return replace(self, planner=planner, horizon=PlannerConfig.horizon, particles=PlannerConfig.particles)
        return replace(self, planner=planner)


def expect_used(planner: Any, names: Iterable[str]) -> None:
    """Raise ValueError where one of the settings is of other planners than this one."""
    for name in names:
        users = [other for other, own in USES.items() if name in own]
        if planner in PLANNERS and users and planner not in users:
            raise ValueError(
                f"{name}: expected none with planner {planner!r}, which does not look at it; it is a setting of "
                f"{', '.join(users)}"
            )
