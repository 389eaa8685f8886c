"""One episode in wall-clock time: the simulation runs by the clock while a second thread computes the actions."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from jacrec.control.controller import MPC, MPCConfig
from jacrec.control.deadline import realtime
from jacrec.envs.actions import ActionBox, expect_time_limit, played_box
from jacrec.envs.physics import make_env, simulator
from jacrec.evaluation.config import expect_playable
from jacrec.evaluation.contestant import environment_id, expect_value_scale
from jacrec.evaluation.episodes import PolicyController
from jacrec.experimental.config import ExperimentalConfig, with_experimental
from jacrec.training.run import Run
from jacrec.util.errors import check_fields, expect_count, expect_one_of, expect_positive, expect_seed

SHARE = 0.9
"""default deadline as a share of the control interval; the rest is left for handing over the action"""


@dataclass(frozen=True)
class LiveConfig:
    """How the episode is played."""

    seconds: float | None = None
    """end after this much simulated time; None: play the whole episode"""
    speed: float = 1.0
    """simulated seconds per wall-clock second; at 0.5 the controller has twice the time per decision"""
    deadline_ms: float | None = None
    """the controller's deadline in milliseconds; None: 90% of the control interval"""
    base: bool = False
    """act with the base policy, without updates"""
    seed: int = 42_000
    """environment seed; 42000 is the first episode of an evaluation"""
    env_id: str | None = None
    """gymnasium id of the environment; None: the one recorded with the run's data"""
    physics: str = "d4rl"
    """contact parameters: d4rl or native, as in an evaluation"""
    max_episode_steps: int | None = None
    """time limit, as in an evaluation; None: the environment's own; required if it has none and `seconds` is not given"""
    action_bounds: str | None = None
    """what the policy's actions in [-1, 1] stand for, as in an evaluation: env or data"""
    threads: int = 1
    """torch threads of the controller"""
    window: bool = False
    """show the simulation in a window; needs a screen and a spare core"""
    mpc: MPCConfig = field(default_factory=lambda: MPCConfig(updates=100))
    """the controller's settings; `updates` is an upper limit, reached only if the deadline allows"""
    experimental: ExperimentalConfig = field(default_factory=ExperimentalConfig)
    """an experimental update rule of the controller"""

    def __post_init__(self):
        check_fields(self)
        expect_seed("seed", self.seed)
        for name in ("seconds", "deadline_ms"):
            if getattr(self, name) is not None:
                expect_positive(name, getattr(self, name))
        expect_positive("speed", self.speed)
        expect_count("threads", self.threads, 1)
        expect_one_of("physics", self.physics, ("d4rl", "native"))
        expect_playable(self)
        if self.mpc.deadline_ms is not None:
            raise ValueError(f"mpc.deadline_ms: expected None, got {self.mpc.deadline_ms}; set deadline_ms instead")
        with_experimental(self.mpc, self.experimental)  # raises if they cannot be combined


@dataclass(frozen=True)
class LiveLog:
    """Result of a live episode."""

    total: float
    """undiscounted sum of the environment's rewards"""
    steps: int
    ended: str
    """reason: `task` (a fall, a goal), `time limit` (the environment's), `seconds` (the requested time) or `interrupt`"""
    held: int
    """steps that repeated an earlier action because the action for their observation was late"""
    longest_held: int
    """longest sequence of such steps"""
    decision_ms: list[float]
    updates: list[int]
    """updates per decision; empty for the base policy"""
    behind_ms: float
    """maximum delay of the simulation behind its clock"""
    wall_seconds: float
    interval_ms: float
    """wall-clock time between two actions"""
    deadline_ms: float | None


class Actor(Protocol):
    """Computes the actions: `MPC` for one environment, or a fixed policy."""

    def act(self, observation: np.ndarray, /) -> np.ndarray:
        """(d,) -> (m,)."""
        ...


def play_live(run: Run, config: LiveConfig, *, status: Callable[[str], None] | None = None) -> LiveLog:
    """Play one episode of the run's environment in wall-clock time.

    At the end of every control interval the environment is stepped with the action for the observation made at the start of
    the interval. If that action is late, the most recent action is repeated, as on a robot. If no action is late, the episode
    equals that of an evaluation. Ctrl-C ends it early.

    Args:
        status: called about four times per second with a status line.

    Raises:
        ValueError: the environment is unknown, does not fit the policy, or has no step time, time limit or action bounds.
    """
    expect_value_scale(run, () if config.base else [config.mpc])
    env_id = environment_id(run, config.env_id)
    options: dict[str, Any] = {"render_mode": "human"} if config.window else {}
    options |= {"max_episode_steps": config.max_episode_steps}
    with closing(make_env(env_id, physics=config.physics, **options)) as env:
        step_time = getattr(simulator(env), "dt", None)
        if step_time is None:
            raise ValueError(f"{env_id}: expected an environment with a step time (attribute dt), got none")
        d = int(np.prod(env.observation_space.shape or ()))
        if d != run.policy.state_dim:
            raise ValueError(
                f"{env_id}: expected state dimension {run.policy.state_dim}, as in the run, got {d}; name the right "
                "environment with env_id"
            )
        if config.seconds is None:
            expect_time_limit(env_id, env.spec.max_episode_steps if env.spec else None)
        box = played_box(env.action_space, env_id, run.info.action_box, config.action_bounds)
        interval = float(step_time) / config.speed
        deadline_ms = None if config.base else config.deadline_ms or SHARE * 1e3 * interval
        if config.base:
            controller: Actor = PolicyController(run.policy)
        else:
            settings = with_experimental(config.mpc, config.experimental)
            controller = MPC(run.policy, run.world, replace(settings, deadline_ms=deadline_ms))
        steps = None if config.seconds is None else max(1, round(config.seconds / float(step_time)))
        with ControllerThread(controller, config.threads) as thread, realtime(), short_switch_interval():
            played = step_by_clock(env, thread, config.seed, interval, steps, box=box, status=status)
    return replace(played, deadline_ms=deadline_ms)


def step_by_clock(
    env: Any,
    thread: "ControllerThread",
    seed: int,
    interval: float,
    steps: int | None = None,
    *,
    box: ActionBox | None = None,
    status: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> LiveLog:
    """Step `env` every `interval` seconds of the clock, with the latest action of the controller thread.

    Args:
        box: what the controller's actions in [-1, 1] stand for; default: themselves.
    """
    box = box or ActionBox()
    observation, _ = env.reset(seed=seed)
    low, high = env.action_space.low, env.action_space.high
    action = np.clip(np.zeros(env.action_space.shape), low, high)
    total, step, held, streak, longest, behind = 0.0, 0, 0, 0, 0, 0.0
    ended = "seconds"
    thread.wait_until_ready()
    started = clock()
    reported = started
    try:
        while steps is None or step < steps:
            thread.submit(step, np.asarray(observation))
            due = started + (step + 1) * interval
            while (left := due - clock()) > 0:
                sleep(left)
            behind = max(behind, clock() - due)
            answered, latest = thread.latest()
            action = action if latest is None else box.from_unit(latest)
            streak = 0 if answered == step else streak + 1
            held, longest = held + (answered != step), max(longest, streak)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, step = total + float(reward), step + 1
            if terminated or truncated:
                ended = "task" if terminated else "time limit"
                break
            if status is not None and clock() - reported > 0.25:
                reported = clock()
                status(f"{step * interval:6.2f} s  step {step:4d}  return {total:8.1f}  late {held}  {thread.status()}")
    except KeyboardInterrupt:
        ended = "interrupt"
    decision_ms = [1e3 * s for s in thread.seconds]
    updates, wall = list(thread.updates), clock() - started
    return LiveLog(total, step, ended, held, longest, decision_ms, updates, 1e3 * behind, wall, 1e3 * interval, None)


class ControllerThread:
    """A thread that computes the action for the most recently submitted observation; older pending ones are dropped."""

    def __init__(self, controller: Actor, threads: int = 1):
        self.controller, self.threads = controller, threads
        self.seconds: list[float] = []
        self.updates: list[int] = []
        self._condition = threading.Condition()
        self._pending: tuple[int, np.ndarray] | None = None
        self._latest: tuple[int, np.ndarray | None] = -1, None
        self._ready, self._closed = False, False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="jacrec-controller", daemon=True)

    def __enter__(self) -> "ControllerThread":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._thread.join()

    def wait_until_ready(self) -> None:
        """Wait until the controller has warmed up; re-raises an error of the thread."""
        with self._condition:
            self._condition.wait_for(lambda: self._ready or self._error is not None)
        self._check()

    def submit(self, step: int, observation: np.ndarray) -> None:
        """Make this observation the next one to be processed."""
        with self._condition:
            self._pending = step, observation
            self._condition.notify_all()

    def latest(self) -> tuple[int, np.ndarray | None]:
        """The latest action and the step it was computed for, initially (-1, None); re-raises an error of the thread."""
        self._check()
        return self._latest

    def status(self) -> str:
        """Duration and number of updates of the latest decision."""
        last = f"{1e3 * self.seconds[-1]:.2f} ms" if self.seconds else "no decision yet"
        return last + (f", {self.updates[-1]} updates" if self.updates else "")

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            # torch's thread settings and the kernels' buffers are per thread
            torch.set_num_threads(self.threads)
            if isinstance(self.controller, MPC):
                self.controller.warm_up()
            with self._condition:
                self._ready = True
                self._condition.notify_all()
            while True:
                with self._condition:
                    self._condition.wait_for(lambda: self._pending is not None or self._closed)
                    if self._closed:
                        return
                    assert self._pending is not None
                    (step, observation), self._pending = self._pending, None
                started = time.perf_counter()
                action = self.controller.act(observation)
                self.seconds.append(time.perf_counter() - started)
                if isinstance(self.controller, MPC) and self.controller.last is not None:
                    self.updates.append(len(self.controller.last.objective))
                with self._condition:
                    self._latest = step, action
                    self._condition.notify_all()
        except BaseException as error:  # re-raised in the simulation's thread
            with self._condition:
                self._error = error
                self._condition.notify_all()


@contextmanager
def short_switch_interval(seconds: float = 2e-4) -> Iterator[None]:
    """Shorten the interpreter's switch interval (5 ms by default), so that a waking thread runs sooner."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
