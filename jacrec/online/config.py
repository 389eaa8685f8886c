"""The settings of a deployment and of the refreshing beside it."""

from dataclasses import dataclass, field

from jacrec.control.controller import MPCConfig
from jacrec.evaluation.config import PlayConfig
from jacrec.experimental.config import ExperimentalConfig, with_experimental
from jacrec.util.errors import expect_one_of, expect_positive

PARTS = ("dynamics", "reward")


@dataclass(frozen=True)
class RefreshConfig:
    """When and how world model and reward model are trained further on the controller's own transitions."""

    enabled: bool = True
    """refresh the models; off: no process and no thread for it, and actions to the bit those of `MPC` alone"""
    start_after: int = 1000
    """transitions in the replay before the first refresh"""
    every: int = 1000
    """new transitions between the beginnings of two refreshes"""
    every_seconds: float | None = None
    """begin a refresh also where this long has passed since the last one began and anything new is there"""
    updates: int = 500
    """gradient steps of a refresh, for each model; Adam begins anew, its step falls to nothing along a cosine"""
    batch_size: int = 256
    """transitions per gradient step"""
    lr: float = 2e-4
    """Adam's first step"""
    share: float = 0.5
    """the replay's share of what is learned from, the rest is the run's offline data; 1: the replay alone"""
    window: int = 100_000
    """newest transitions of the replay that are learned from and tested on"""
    offline_rows: int = 100_000
    """offline transitions kept in memory, drawn from the run's training episodes"""
    held_out: float = 0.1
    """share of the window, its newest part, that is not learned from: there a refreshed model has to be better"""
    min_gain: float = 0.0
    """part of the present model's held-out error by which a refreshed one has to be better to take its place"""
    parts: tuple[str, ...] = PARTS
    """which models: dynamics, reward"""
    niceness: int = 19
    """how far the refreshing process, which has one thread, stands back for others (as of nice: 19 is furthest)"""
    restarts: int = 1
    """how often a refreshing process that has died is started again"""
    stalled_seconds: float = 60.0
    """a refreshing process that has been silent for so long is said to hang; the control goes on"""
    poll_seconds: float = 0.2
    """how often the process looks at the replay, and the controller's side at what the process has published"""
    keep: int = 3
    """newest published versions that stay on disk"""
    seed: int = 0
    """of the batches"""

    def __post_init__(self):
        for name in ("start_after", "every", "updates", "batch_size", "window", "offline_rows", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("restarts", "niceness"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        for name in ("lr", "poll_seconds", "stalled_seconds"):
            expect_positive(name, getattr(self, name))
        if self.every_seconds is not None:
            expect_positive("every_seconds", self.every_seconds)
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"share: expected a number above 0 and at most 1 (the replay alone), got {self.share}")
        if not 0.0 < self.held_out <= 0.5:
            raise ValueError(f"held_out: expected a number above 0 and at most 0.5, got {self.held_out}")
        if not 0.0 <= self.min_gain < 1.0:
            raise ValueError(f"min_gain: expected a number of at least 0 and below 1, got {self.min_gain}")
        if not self.parts:
            raise ValueError(
                f"parts: expected at least one of {', '.join(PARTS)}, got none; enabled = False switches the refreshing off"
            )
        for part in self.parts:
            expect_one_of("parts", part, PARTS)

    def due(self, transitions: int, at_last: int, seconds: float) -> bool:
        """Whether to refresh, with so many transitions in the replay.

        Args:
            at_last: transitions there were when the last refresh began; 0 where there was none.
            seconds: since then, or since the process began.
        """
        if transitions < self.start_after:
            return False
        if at_last == 0 or transitions >= at_last + self.every:
            return True
        return self.every_seconds is not None and seconds >= self.every_seconds and transitions > at_last


@dataclass(frozen=True)
class ReplayConfig:
    """How the replay is brought to disk."""

    flush_every: int = 1
    """transitions that are written together: a killed process loses at most those not yet written. 1: `append` itself
    writes, and nothing that it returned from is lost; more: a thread writes, and `append` never touches the disk"""
    sync_seconds: float = 1.0
    """longest time between a write and its fsync, by a thread: what a loss of power may take. 0, with flush_every = 1:
    `append` itself syncs"""
    buffer: int = 65_536
    """transitions that wait for the writing thread at most; where the disk takes none any more, `append` raises"""

    def __post_init__(self):
        for name in ("flush_every", "buffer"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.sync_seconds < 0:
            raise ValueError(f"sync_seconds: expected at least 0, got {self.sync_seconds}")
        if self.sync_seconds == 0 and self.flush_every > 1:
            raise ValueError(
                f"sync_seconds: expected more than 0 with flush_every = {self.flush_every}, where `append` does "
                "not touch the disk; take flush_every = 1 for `append` to sync itself"
            )
        if self.buffer < self.flush_every:
            raise ValueError(f"buffer: expected at least flush_every = {self.flush_every}, got {self.buffer}")


@dataclass(frozen=True)
class DeployConfig:
    """A deployment: MPC in a run's environment, its replay, and the refreshing beside it."""

    episodes: int = 10
    """episodes in all; a finished deployment goes on where this is raised"""
    rows: int = 1
    """episodes in lock-step, each with its own ψ"""
    seed: int = 42
    """episode i starts from environment seed 1000 · seed + i, as in an evaluation"""
    env_id: str | None = None
    """gymnasium id of the environment, where the run does not say it"""
    physics: str = "d4rl"
    """d4rl (contacts as when the data sets were made) or native"""
    threads: int = 1
    """threads of torch for the controller"""
    step_seconds: float | None = None
    """wall-clock time that a step of the environment takes at least, to play in real time; none named: as fast as it goes"""
    mpc: MPCConfig = field(default_factory=MPCConfig)
    """the controller's settings"""
    experimental: ExperimentalConfig = field(default_factory=ExperimentalConfig)
    """an experimental update rule of the controller"""
    online: RefreshConfig = field(default_factory=RefreshConfig)
    """the refreshing"""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    """the replay on disk"""

    def __post_init__(self):
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
        """The same as settings of an evaluation."""
        return PlayConfig(self.episodes, self.seed, self.rows, self.env_id, self.physics, self.threads)
