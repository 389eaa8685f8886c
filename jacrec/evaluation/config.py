"""The settings of an evaluation."""

from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any, Protocol

from jacrec.control.config import MPCConfig
from jacrec.envs.actions import CHOICES
from jacrec.experimental.config import ExperimentalConfig, experimental_of, with_experimental
from jacrec.models.dynamics.sampler import Sampler
from jacrec.planners import PLANNERS, PlannerConfig, within_budget
from jacrec.util.errors import check_fields, expect_count, expect_one_of, expect_seed

CONTESTANTS = ("base", "h0", "mpc", *PLANNERS)


class Playing(Protocol):
    """Settings of an environment that is played in."""

    @property
    def max_episode_steps(self) -> int | None: ...
    @property
    def action_bounds(self) -> str | None: ...


def expect_playable(config: Playing) -> None:
    """Raise ValueError for a time limit or action bounds that there are not."""
    if config.max_episode_steps is not None:
        expect_count("max_episode_steps", config.max_episode_steps, 1)
    if config.action_bounds is not None:
        expect_one_of("action_bounds", config.action_bounds, CHOICES)


@dataclass(frozen=True)
class PlayConfig:
    """How the episodes of a contestant are played.

    The defaults follow the standard protocol for locomotion: the final networks (last evaluation, not the best one),
    10 episodes, evaluation seed 42.
    """

    episodes: int = 10
    """episodes per contestant (standard protocol: 10 for locomotion, 100 for AntMaze)"""
    seed: int = 42
    """episode i starts from environment seed 1000 · seed + i"""
    rows: int | None = None
    """episodes played in lock-step; None: all"""
    env_id: str | None = None
    """gymnasium id of the environment; None: the one recorded with the run's data"""
    physics: str = "d4rl"
    """contact parameters: d4rl (as when the data sets were recorded) or native"""
    max_episode_steps: int | None = None
    """time limit; None: the environment's own; required if it has none"""
    action_bounds: str | None = None
    """what the policy's actions in [-1, 1] stand for: env (the environment's bounds) or data (those that the data state, else
    [-1, 1] itself); None: the environment's, and an error if the data state others"""
    threads: int = 1
    """torch threads; batches are small, and more threads than idle cores slow down evaluation several times"""
    probe_every: int = 20
    """steps between measurements of the imagined return before and after an update"""
    probe_particles: int = 16
    """imagined trajectories per measurement"""

    def __post_init__(self):
        check_fields(self)
        expect_seed("seed", self.seed)
        for name in ("episodes", "threads", "probe_every", "probe_particles"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        expect_one_of("physics", self.physics, ("d4rl", "native"))
        expect_playable(self)
        if self.rows is not None and not 1 <= self.rows <= self.episodes:
            raise ValueError(f"rows: expected 1 to {self.episodes} (the number of episodes), got {self.rows}")

    @property
    def seeds(self) -> list[int]:
        """One environment seed per episode."""
        return [1000 * self.seed + i for i in range(self.episodes)]

    def allow(self, controller: MPCConfig | PlannerConfig, name: str = "mpc") -> None:
        """Raise ValueError if a controller's settings are incompatible with these."""
        if isinstance(controller, MPCConfig) and controller.deadline_ms is not None and (self.rows or self.episodes) > 1:
            raise ValueError(
                f"{name}.deadline_ms: expected rows = 1, since a deadline applies to a single decision; got "
                f"{self.rows or self.episodes} episodes in lock-step"
            )


def _default(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


@dataclass(frozen=True)
class EvalConfig(PlayConfig):
    """An evaluation: base policy, H = 0 control, MPC and action planners on the same environment seeds."""

    contestants: tuple[str, ...] = ("base", "h0", "mpc")
    """contestants: base (π as trained; always plays), h0 (ascent on the critic at s_t alone), mpc (Algorithm 1), and the
    action planners mppi, cem, best-of-return, best-of-q and action-gradient in the same world model"""
    mpc: MPCConfig = field(default_factory=MPCConfig)
    """the controller's settings; h0 uses them with horizon 0, and so with its own action in the last term"""
    experimental: ExperimentalConfig = field(default_factory=ExperimentalConfig)
    """an experimental update rule of mpc and h0; h0 has no gate, since at horizon 0 all particles are identical"""
    dynamics: Sampler = field(default_factory=Sampler)
    """sampling settings of the world model, for all contestants; no retraining"""
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    """settings of the planners among the contestants; each uses the fields that concern it, and `planner.planner` is ignored"""
    planner_budget: int | None = None
    """limit of world-model transitions per decision for the planners, met by choosing the number of samples (action-gradient:
    of iterations); for comparison, MPC spends 2 · updates · particles · horizon"""
    rehearse: bool = False
    """let a rehearsal in the world model choose mpc's settings, or the base policy; uses rehearsal.json next to the
    evaluation, else the run's, and makes one if there is none"""
    tuned: bool = False
    """play mpc and h0 with the settings that `jacrec tune` chose for this run (tuning.json next to the evaluation)"""
    h0_lr: float | None = None
    """step size of h0; None: mpc's"""
    h0_updates: int | None = None
    """gradient steps per decision of h0; None: mpc's"""
    h0_carry: str | None = None
    """what h0 does with ψ between decisions; None: as mpc"""
    growth_horizon: int = 10
    """imagined steps over which the growth of the closed-loop Jacobian is measured"""

    def __post_init__(self):
        super().__post_init__()
        if self.growth_horizon < 1:
            raise ValueError(f"growth_horizon: expected at least 1, got {self.growth_horizon}")
        for name in self.contestants:
            expect_one_of("contestants", name, CONTESTANTS)
        if self.rehearse and (self.mpc, self.experimental) != (MPCConfig(), ExperimentalConfig()):
            raise ValueError(
                f"mpc: expected the defaults with rehearse, which chooses the settings, got {self.mpc}; to rehearse other "
                "settings, run `jacrec rehearse RUN --candidates FILE.yaml` first"
            )
        if self.tuned:
            own = ("mpc", "experimental", "h0_lr", "h0_updates", "h0_carry", "rehearse", "dynamics")
            given = [f.name for f in fields(self) if f.name in own and getattr(self, f.name) != _default(f)]
            if given:
                raise ValueError(f"tuned: expected no {', '.join(given)} beside it, since the tuning decides, got some")
        if self.planner_budget is not None:
            expect_count("planner_budget", self.planner_budget, 1)
        for name in self.contestants:
            if name != "base":
                self.controller(name)  # validates its settings
        self.allow(self.mpc)

    @property
    def order(self) -> list[str]:
        """The contestants in playing order, base first."""
        return [name for name in CONTESTANTS if name == "base" or name in self.contestants]

    def controller(self, name: str) -> MPCConfig | PlannerConfig:
        """Controller settings of a contestant other than the base policy."""
        if name == "mpc":
            return with_experimental(self.mpc, self.experimental)
        if name in PLANNERS:
            own = self.planner.of(name)
            return own if self.planner_budget is None else within_budget(own, self.planner_budget)
        own = {"lr": self.h0_lr, "updates": self.h0_updates, "carry": self.h0_carry}
        settings: dict[str, Any] = {f.name: getattr(self.mpc, f.name) for f in fields(MPCConfig)}
        settings |= {"horizon": 0, "particles": 1, "terminal": "policy"} | {k: v for k, v in own.items() if v is not None}
        # at H = 0 all particles are identical, so there is no noise to compare the gradient with
        experimental = experimental_of(with_experimental(self.mpc, self.experimental))
        ungated = replace(experimental, min_signal=None, max_particles=None)
        return with_experimental(MPCConfig(**settings), ungated)
