"""The settings of an evaluation."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from jacrec.control.config import MPCConfig
from jacrec.experimental.config import ExperimentalConfig, experimental_of, with_experimental
from jacrec.models.dynamics.sampler import Sampler
from jacrec.planners import PLANNERS, PlannerConfig, within_budget
from jacrec.util.errors import expect_count, expect_one_of

CONTESTANTS = ("base", "h0", "mpc", *PLANNERS)


@dataclass(frozen=True)
class PlayConfig:
    """How a contestant's episodes are played, whoever it is.

    The defaults are the literature's protocol for locomotion: the networks as training left them (the last evaluation, not
    the best one), 10 episodes, evaluation seed 42.
    """

    episodes: int = 10
    """episodes per contestant (the reference protocol: 10 for locomotion, 100 for AntMaze)"""
    seed: int = 42
    """episode i starts from environment seed 1000 · seed + i"""
    rows: int | None = None
    """episodes in lock-step; none named: all of them"""
    env_id: str | None = None
    """gymnasium id of the evaluating environment, where the run does not say it"""
    physics: str = "d4rl"
    """d4rl (contacts as when the data sets were made) or native"""
    threads: int = 1
    """threads of torch while playing: the batches are small, and more threads than idle cores slow each other many times"""
    probe_every: int = 20
    """steps between measurements of the imagined return before and after the update"""
    probe_particles: int = 16
    """imagined trajectories of each such measurement"""

    def __post_init__(self):
        for name in ("episodes", "threads", "probe_every", "probe_particles"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        expect_one_of("physics", self.physics, ("d4rl", "native"))
        if self.rows is not None and not 1 <= self.rows <= self.episodes:
            raise ValueError(f"rows: expected 1 to {self.episodes} (the number of episodes), got {self.rows}")

    @property
    def seeds(self) -> list[int]:
        """One environment seed per episode."""
        return [1000 * self.seed + i for i in range(self.episodes)]

    def allow(self, controller: MPCConfig | PlannerConfig, name: str = "mpc") -> None:
        """Raise ValueError where these settings and a controller's do not go together."""
        if isinstance(controller, MPCConfig) and controller.deadline_ms is not None and (self.rows or self.episodes) > 1:
            raise ValueError(
                f"{name}.deadline_ms: expected rows = 1, since a deadline is of one decision; got "
                f"{self.rows or self.episodes} episodes in lock-step"
            )


@dataclass(frozen=True)
class EvalConfig(PlayConfig):
    """Base policy, MPC, MPC without a world model (H = 0), and planners over actions, on the same environment seeds."""

    contestants: tuple[str, ...] = ("base", "h0", "mpc")
    """who plays: base (π as trained), h0 (ascent on the critic at s_t alone), mpc (Algorithm 1); mppi, cem, best-of-return,
    best-of-q, action-gradient (planners over actions in the same world model); base always does"""
    mpc: MPCConfig = field(default_factory=MPCConfig)
    """the controller's settings; h0 takes them with horizon 0"""
    experimental: ExperimentalConfig = field(default_factory=ExperimentalConfig)
    """an experimental update rule of mpc and h0; h0 has no gate, since at horizon 0 all particles agree"""
    dynamics: Sampler = field(default_factory=Sampler)
    """the world model sampled otherwise than it was made, for everybody who imagines in it; no training"""
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    """settings of the planners among the contestants, each of which takes what it looks at; the names decide who plays, not
    its own `planner`"""
    planner_budget: int | None = None
    """transitions of the world model per decision: each planner's samples (action-gradient: its iterations) are set to spend
    at most so many; MPC spends 2 · updates · particles · horizon"""
    rehearse: bool = False
    """let a rehearsal in the world model (rehearsal.json beside the evaluation, made where there is none) choose mpc's
    settings, or the base policy, as which mpc then acts"""
    h0_lr: float | None = None
    """step size of h0 where it is to differ from mpc's"""
    h0_updates: int | None = None
    """gradient steps per decision of h0, likewise"""
    h0_carry: str | None = None
    """what h0 does with ψ between decisions, likewise"""
    growth_horizon: int = 10
    """steps over which the growth of the closed-loop Jacobian is followed"""

    def __post_init__(self):
        super().__post_init__()
        if self.growth_horizon < 1:
            raise ValueError(f"growth_horizon: expected at least 1, got {self.growth_horizon}")
        for name in self.contestants:
            expect_one_of("contestants", name, CONTESTANTS)
        if self.rehearse and (self.mpc, self.experimental) != (MPCConfig(), ExperimentalConfig()):
            raise ValueError(
                "mpc: expected no settings beside rehearse, which chooses them; name candidates of your own with "
                "`jacrec rehearse RUN --candidates FILE.yaml` first"
            )
        if self.planner_budget is not None:
            expect_count("planner_budget", self.planner_budget, 1)
        for name in self.contestants:
            if name != "base":
                self.controller(name)  # says what is wrong with its settings
        self.allow(self.mpc)

    @property
    def order(self) -> list[str]:
        """The contestants in the order they play, base first."""
        return [name for name in CONTESTANTS if name == "base" or name in self.contestants]

    def controller(self, name: str) -> MPCConfig | PlannerConfig:
        """The controller's settings of a contestant that is not the base policy."""
        if name == "mpc":
            return with_experimental(self.mpc, self.experimental)
        if name in PLANNERS:
            own = self.planner.of(name)
            return own if self.planner_budget is None else within_budget(own, self.planner_budget)
        own = {"lr": self.h0_lr, "updates": self.h0_updates, "carry": self.h0_carry}
        settings: dict[str, Any] = {f.name: getattr(self.mpc, f.name) for f in fields(MPCConfig)}
        settings |= {"horizon": 0, "particles": 1} | {k: v for k, v in own.items() if v is not None}
        # at H = 0 all particles agree: there is no noise for a gate to compare a signal with
        experimental = experimental_of(with_experimental(self.mpc, self.experimental))
        ungated = replace(experimental, min_signal=None, max_particles=None)
        return with_experimental(MPCConfig(**settings), ungated)
