"""The settings of a planner."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from jacrec.util.errors import check_fields, expect_count, expect_one_of, expect_positive, expect_seed

COMMON = ("planner", "horizon", "max_action_change", "seed")
USES = {
    "mppi": ("particles", "samples", "iterations", "noise_std", "temperature", "carry"),
    "cem": ("particles", "samples", "iterations", "noise_std", "elites", "least_std", "carry"),
    "best-of-return": ("particles", "samples", "noise_std", "noisy_steps"),
    "best-of-q": ("samples", "noise_std"),
    "action-gradient": ("particles", "iterations", "lr", "normalise", "carry"),
}
"""the settings that each planner uses, besides the common ones"""
PLANNERS = tuple(USES)


@dataclass(frozen=True)
class PlannerConfig:
    """Settings of a planner. Each planner uses the settings listed in `USES` and ignores the others."""

    planner: str = "mppi"
    """mppi (weighted mean of noisy plans, Williams et al. 2017), cem (refitted to the best plans), best-of-return (the best of
    perturbed policy rollouts), best-of-q (the best of perturbed actions by Q(s_t, a), no world model) or action-gradient
    (ascent on the plan through the world model)"""
    horizon: int = 5
    """H imagined steps, followed by γ^H Q(s̃_H, π(s̃_H)); 0 for best-of-q, which imagines none"""
    particles: int = 4
    """M noise draws, shared by all candidates; 1 is enough for deterministic dynamics"""
    samples: int = 16
    """candidates per iteration; the first iteration includes the policy's own rollout"""
    iterations: int = 1
    """rounds of sampling (mppi, cem), or gradient steps (action-gradient)"""
    noise_std: float = 0.3
    """standard deviation of the noise on actions in [-1, 1]; initial value for cem"""
    temperature: float = 0.3
    """mppi: a candidate has weight exp(J / (temperature · standard deviation of the candidates' J)), independent of reward scale"""
    elites: int = 4
    """cem: number of candidates to which mean and standard deviation are refitted"""
    least_std: float = 0.05
    """cem: lower bound of the candidates' standard deviation"""
    noisy_steps: int = 1
    """best-of-return: number of perturbed first actions; the policy takes the later ones"""
    lr: float = 0.01
    """action-gradient: step size of plain ascent on a_0 … a_{H-1}"""
    normalise: bool = False
    """action-gradient: divide the gradient by its norm, so that a step has length `lr`"""
    carry: str = "episode"
    """"episode": a decision starts from the last plan, shifted by one step, until `new_episode` (mppi, cem, action-gradient);
    "step": every decision starts from the policy's own rollout"""
    max_action_change: float | None = None
    """largest |a − π(s)| per component, as in `MPCConfig`: an action further from the policy's is clipped to that box"""
    seed: int = 0
    """seed of the imagination's noise and of the candidates"""

    def __post_init__(self):
        check_fields(self)
        expect_seed("seed", self.seed)
        expect_one_of("planner", self.planner, PLANNERS)
        if self.planner == "best-of-q":
            # no steps are imagined, so all particles agree
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
        """The names of the settings that this planner uses."""
        return (*COMMON, *USES[self.planner])

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that this planner uses, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name in self.used}

    @property
    def rounds(self) -> int:
        """Number of times that candidates are drawn in a decision."""
        return self.iterations if self.planner in ("mppi", "cem") else 1

    @property
    def planned_steps(self) -> int:
        """L, the number of planned actions a_0 … a_{L-1}; the policy takes the later ones."""
        return {"best-of-return": self.noisy_steps, "best-of-q": 1}.get(self.planner, self.horizon)

    def of(self, planner: str) -> "PlannerConfig":
        """The same settings for another planner."""
        expect_one_of("planner", planner, PLANNERS)
        if "best-of-q" in (planner, self.planner) and planner != self.planner:
            return replace(self, planner=planner, horizon=PlannerConfig.horizon, particles=PlannerConfig.particles)
        return replace(self, planner=planner)


def expect_used(planner: Any, names: Iterable[str]) -> None:
    """ValueError for a setting that this planner does not use."""
    for name in names:
        users = [other for other, own in USES.items() if name in own]
        if planner in PLANNERS and users and planner not in users:
            raise ValueError(
                f"{name}: expected none with planner {planner!r}, which does not use it; it is a setting of {', '.join(users)}"
            )
