"""Settings of a deployment, its replay buffer and the refreshing of its models."""

from dataclasses import dataclass, field

from jacrec.control.controller import MPCConfig
from jacrec.evaluation.config import PlayConfig
from jacrec.experimental.config import ExperimentalConfig, with_experimental
from jacrec.util.errors import check_fields, expect_count, expect_one_of, expect_positive, expect_seed

PARTS = ("dynamics", "reward")


@dataclass(frozen=True)
class RefreshConfig:
    """When and how the world model and the reward model are trained further on the controller's transitions."""

    enabled: bool = True
    """refresh the models; if disabled, no process or thread is started and actions are bit-identical to those of `MPC`"""
    start_after: int = 1000
    """transitions in the replay buffer before the first refresh"""
    every: int = 1000
    """new transitions between the starts of two refreshes"""
    every_seconds: float | None = None
    """also start a refresh this many seconds after the start of the last one, if there are new transitions"""
    updates: int = 500
    """gradient steps per refresh and model, with a new Adam state and a cosine schedule to zero"""
    batch_size: int = 256
    """transitions per gradient step"""
    lr: float = 2e-4
    """Adam's initial step size"""
    share: float = 0.5
    """fraction of the training data taken from the replay buffer; the rest is the run's offline data (1: replay buffer only)"""
    window: int = 100_000
    """number of newest transitions in the replay buffer used for training and testing"""
    offline_rows: int = 100_000
    """offline transitions kept in memory, drawn from the run's training episodes"""
    held_out: float = 0.1
    """fraction of the window, its newest part, held out from training; a refreshed model must be better there"""
    min_gain: float = 0.0
    """required reduction of the held-out error for a refreshed model to be accepted, relative to the current model's error"""
    parts: tuple[str, ...] = PARTS
    """models to refresh: dynamics, reward"""
    niceness: int = 19
    """niceness of the single-threaded refreshing process, relative to the controller (19 is the lowest priority)"""
    restarts: int = 1
    """how often a refreshing process that has died is restarted"""
    stalled_seconds: float = 60.0
    """seconds without a sign of life after which the refreshing process is reported as stalled; control continues"""
    poll_seconds: float = 0.2
    """polling interval of the refreshing process for transitions, and of the controller for published models"""
    keep: int = 3
    """number of published versions kept on disk"""
    seed: int = 0
    """seed of the batches"""

    def __post_init__(self):
        check_fields(self)
        expect_seed("seed", self.seed)
        for name in ("start_after", "every", "updates", "batch_size", "window", "offline_rows", "keep"):
            expect_count(name, getattr(self, name), 1)
        for name in ("restarts", "niceness"):
            expect_count(name, getattr(self, name), 0)
        for name in ("lr", "poll_seconds", "stalled_seconds"):
            expect_positive(name, getattr(self, name))
        if self.every_seconds is not None:
            expect_positive("every_seconds", self.every_seconds)
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"share: expected 0 < share <= 1, got {self.share}")
        if not 0.0 < self.held_out <= 0.5:
            raise ValueError(f"held_out: expected 0 < held_out <= 0.5, got {self.held_out}")
        if not 0.0 <= self.min_gain < 1.0:
            raise ValueError(f"min_gain: expected 0 <= min_gain < 1, got {self.min_gain}")
        if not self.parts:
            raise ValueError(
                f"parts: expected at least one of {', '.join(PARTS)}, got none; set enabled = False to disable refreshing"
            )
        for part in self.parts:
            expect_one_of("parts", part, PARTS)

    def due(self, transitions: int, at_last: int, seconds: float) -> bool:
        """Whether a refresh is due.

        Args:
            transitions: current number of transitions in the replay buffer.
            at_last: number of transitions at the start of the last refresh; 0 if there was none.
            seconds: time since then, or since the start of the process.
        """
        if transitions < self.start_after:
            return False
        if at_last == 0 or transitions >= at_last + self.every:
            return True
        return self.every_seconds is not None and seconds >= self.every_seconds and transitions > at_last


@dataclass(frozen=True)
class ReplayConfig:
    """How the replay buffer is written to disk."""

    flush_every: int = 1
    """transitions per write; a killed process loses at most the unwritten ones. With 1, `append` writes synchronously and
    nothing it has returned from is lost; with more, a thread writes and `append` never touches the disk"""
    sync_seconds: float = 1.0
    """maximum time between a write and its fsync, done by a thread; this much can be lost in a power failure. With 0 (requires
    flush_every = 1), `append` syncs itself"""
    buffer: int = 65_536
    """maximum number of transitions waiting to be written; if the disk does not accept them, `append` raises"""

    def __post_init__(self):
        check_fields(self)
        for name in ("flush_every", "buffer"):
            expect_count(name, getattr(self, name), 1)
        if self.sync_seconds < 0:
            raise ValueError(f"sync_seconds: expected at least 0, got {self.sync_seconds}")
        if self.sync_seconds == 0 and self.flush_every > 1:
            raise ValueError(
                f"sync_seconds: expected more than 0 with flush_every = {self.flush_every}, since `append` does not touch the "
                "disk then, got 0; set flush_every = 1 for synchronous writes"
            )
        if self.buffer < self.flush_every:
            raise ValueError(f"buffer: expected at least flush_every = {self.flush_every}, got {self.buffer}")


@dataclass(frozen=True)
class DeployConfig:
    """A deployment: MPC in a run's environment, with a replay buffer and refreshed models."""

    episodes: int = 10
    """total number of episodes; can be increased to resume a finished deployment"""
    rows: int = 1
    """episodes played in lock-step, each with its own ψ"""
    seed: int = 42
    """episode i starts from environment seed 1000 · seed + i, as in an evaluation"""
    env_id: str | None = None
    """gymnasium id of the environment; None: the one recorded with the run's data"""
    physics: str = "d4rl"
    """contact parameters: d4rl (as when the data sets were recorded) or native"""
    max_episode_steps: int | None = None
    """time limit, as in an evaluation; None: the environment's own; required if it has none"""
    action_bounds: str | None = None
    """what the policy's actions in [-1, 1] stand for, as in an evaluation: env or data"""
    threads: int = 1
    """torch threads of the controller"""
    step_seconds: float | None = None
    """minimum wall-clock time per environment step, for real-time deployment; None: no minimum"""
    race_allowance: float = 4.0
    """what the candidates of a race may lose together against the base policy, in episodes of its mean |return|; at least 1. More
    where returns scatter much (falls)"""
    mpc: MPCConfig = field(default_factory=MPCConfig)
    """settings of the controller"""
    experimental: ExperimentalConfig = field(default_factory=ExperimentalConfig)
    """an experimental update rule of the controller"""
    online: RefreshConfig = field(default_factory=RefreshConfig)
    """settings of the refreshing"""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    """settings of the replay buffer"""

    def __post_init__(self):
        check_fields(self)
        if self.rows < 1 or self.episodes < 1 or self.episodes % self.rows:
            raise ValueError(f"episodes: expected a multiple of rows = {self.rows}, got {self.episodes}")
        if self.step_seconds is not None:
            expect_positive("step_seconds", self.step_seconds)
        self.play.allow(self.controller)

    @property
    def controller(self) -> MPCConfig:
        """The controller's settings with those of its update rule."""
        return with_experimental(self.mpc, self.experimental)

    @property
    def play(self) -> PlayConfig:
        """The corresponding settings of an evaluation."""
        names = ("episodes", "seed", "rows", "env_id", "physics", "max_episode_steps", "action_bounds", "threads")
        return PlayConfig(**{name: getattr(self, name) for name in names})
