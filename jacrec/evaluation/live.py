"""One episode in wall-clock time: the simulation goes on by its own clock while a thread of its own thinks.

play_live(run, config) -> LiveLog
"""

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
from jacrec.envs.physics import make_env, simulator
from jacrec.evaluation.episodes import PolicyController
from jacrec.experimental.config import ExperimentalConfig, with_experimental
from jacrec.training.run import Run
from jacrec.util.errors import expect_count, expect_one_of, expect_positive

SHARE = 0.9
"""of the control interval that the controller plans for where no deadline is named: handing over takes time, too"""


@dataclass(frozen=True)
class LiveConfig:
    """How the episode is played."""

    seconds: float | None = None
    """end after so much simulated time; the whole episode unless told"""
    speed: float = 1.0
    """simulated seconds per second: 0.5 is half speed, with twice the time to think"""
    deadline_ms: float | None = None
    """the controller's deadline; nine tenths of the control interval unless told"""
    base: bool = False
    """let the base policy act, without thinking"""
    seed: int = 42_000
    """of the environment; 42000 is the first episode of an evaluation"""
    env_id: str | None = None
    """gymnasium id of the environment, where the run does not say it"""
    physics: str = "d4rl"
    """as in an evaluation"""
    threads: int = 1
    """threads of torch while thinking"""
    window: bool = False
    """show the simulation in a window; needs a screen, and a core for it"""
    mpc: MPCConfig = field(default_factory=lambda: MPCConfig(updates=100))
    """the controller's settings; as many of its updates are made as the deadline allows"""
    experimental: ExperimentalConfig = field(default_factory=ExperimentalConfig)
    """an experimental update rule of the controller"""

    def __post_init__(self):
        for name in ("seconds", "deadline_ms"):
            if getattr(self, name) is not None:
                expect_positive(name, getattr(self, name))
        expect_positive("speed", self.speed)
        expect_count("threads", self.threads, 1)
        expect_one_of("physics", self.physics, ("d4rl", "native"))
        if self.mpc.deadline_ms is not None:
            raise ValueError(f"mpc.deadline_ms: expected none, since deadline_ms says it here, got {self.mpc.deadline_ms}")
        with_experimental(self.mpc, self.experimental)  # raises where they cannot be combined


@dataclass(frozen=True)
class LiveLog:
    """What the episode came to."""

    total: float
    """undiscounted sum of the environment's rewards"""
    steps: int
    ended: str
    """by what: "task" (a fall, a goal), "time limit" of the environment, "seconds" that were asked for, or "interrupt\""""
    held: int
    """steps taken with an earlier action, since the one for their observation had not come"""
    longest_held: int
    """most such steps in a row"""
    decision_ms: list[float]
    updates: list[int]
    """made per decision; empty for the base policy"""
    behind_ms: float
    """how far the simulation itself fell behind its clock, at most"""
    wall_seconds: float
    interval_ms: float
    """wall-clock time between two actions"""
    deadline_ms: float | None


class Actor(Protocol):
    """What the thread asks: `MPC` for one environment, or a fixed policy."""

    def act(self, observation: np.ndarray, /) -> np.ndarray:
        """(d,) -> (m,)."""
        ...


def play_live(run: Run, config: LiveConfig, *, status: Callable[[str], None] | None = None) -> LiveLog:
    """Play one episode of the run's environment in wall-clock time.

    At the end of every control interval the environment takes its step, with the action that was found for the observation
    at the interval's begin, or, where that is late, with the latest action there is, as a robot does. If no action is late,
    the episode is that of an evaluation. Ctrl-C ends it early.

    Args:
        status: called about four times a second with a line on how it goes.

    Raises:
        ValueError: no environment is known, it does not fit the policy, or it does not say how long a step takes.
    """
    env_id = config.env_id or run.info.env_id
    if env_id is None:
        raise ValueError(f"{run.path}: expected data that names its environment, got none; give env_id, e.g. Hopper-v4")
    options = {"render_mode": "human"} if config.window else {}
    with closing(make_env(env_id, physics=config.physics, **options)) as env:
        step_time = getattr(simulator(env), "dt", None)
        if step_time is None:
            raise ValueError(f"{env_id}: expected an environment with a simulated time per step (dt), got none")
        d = int(np.prod(env.observation_space.shape or ()))
        if d != run.policy.state_dim:
            raise ValueError(
                f"{env_id}: expected states of {run.policy.state_dim} numbers, as in the run, got {d}; name the "
                "right environment with env_id"
            )
        interval = float(step_time) / config.speed
        deadline_ms = None if config.base else config.deadline_ms or SHARE * 1e3 * interval
        if config.base:
            controller: Actor = PolicyController(run.policy)
        else:
            settings = with_experimental(config.mpc, config.experimental)
            controller = MPC(run.policy, run.world, replace(settings, deadline_ms=deadline_ms))
        steps = None if config.seconds is None else max(1, round(config.seconds / float(step_time)))
        with ControllerThread(controller, config.threads) as mind, realtime(), quick_switches():
            played = drive(env, mind, config.seed, interval, steps, status=status)
    return replace(played, deadline_ms=deadline_ms)


def drive(
    env: Any,
    mind: "ControllerThread",
    seed: int,
    interval: float,
    steps: int | None = None,
    *,
    status: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> LiveLog:
    """The simulation's side: a step of `env` every `interval` seconds of the clock, whatever the mind does."""
    observation, _ = env.reset(seed=seed)
    low, high = env.action_space.low, env.action_space.high
    action = np.clip(np.zeros(env.action_space.shape), low, high)
    total, step, held, row, longest, behind = 0.0, 0, 0, 0, 0, 0.0
    ended = "seconds"
    mind.wait_until_ready()
    begun = clock()
    told = begun
    try:
        while steps is None or step < steps:
            mind.ask(step, np.asarray(observation))
            due = begun + (step + 1) * interval
            while (left := due - clock()) > 0:
                sleep(left)
            behind = max(behind, clock() - due)
            of, latest = mind.answer()
            action = action if latest is None else latest
            row = 0 if of == step else row + 1
            held, longest = held + (of != step), max(longest, row)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, step = total + float(reward), step + 1
            if terminated or truncated:
                ended = "task" if terminated else "time limit"
                break
            if status is not None and clock() - told > 0.25:
                told = clock()
                status(f"{step * interval:6.2f} s  step {step:4d}  return {total:8.1f}  late {held}  {mind.words()}")
    except KeyboardInterrupt:
        ended = "interrupt"
    decision_ms = [1e3 * s for s in mind.seconds]
    wall = clock() - begun
    return LiveLog(total, step, ended, held, longest, decision_ms, list(mind.updates), 1e3 * behind, wall, 1e3 * interval, None)


class ControllerThread:
    """A thread that thinks about the latest observation; what it is asked meanwhile replaces what it was asked before."""

    def __init__(self, controller: Actor, threads: int = 1):
        self.controller, self.threads = controller, threads
        self.seconds: list[float] = []
        self.updates: list[int] = []
        self._condition = threading.Condition()
        self._asked: tuple[int, np.ndarray] | None = None
        self._answer: tuple[int, np.ndarray | None] = -1, None
        self._ready, self._closed = False, False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="jacrec-mind", daemon=True)

    def __enter__(self) -> "ControllerThread":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._thread.join()

    def wait_until_ready(self) -> None:
        """Until the thread has warmed up; raises what it raised."""
        with self._condition:
            self._condition.wait_for(lambda: self._ready or self._error is not None)
        self._check()

    def ask(self, step: int, observation: np.ndarray) -> None:
        """Think about this observation next."""
        with self._condition:
            self._asked = step, observation
            self._condition.notify_all()

    def answer(self) -> tuple[int, np.ndarray | None]:
        """The latest action, and the step that it was found for: (-1, None) before the first; raises what the thread raised."""
        self._check()
        return self._answer

    def words(self) -> str:
        """The latest decision."""
        last = f"{1e3 * self.seconds[-1]:.2f} ms" if self.seconds else "no decision yet"
        return last + (f", {self.updates[-1]} updates" if self.updates else "")

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            # settings of threads, and the memory of the compiled kernels, belong to the thread that uses them
            torch.set_num_threads(self.threads)
            if isinstance(self.controller, MPC):
                self.controller.warm_up()
            with self._condition:
                self._ready = True
                self._condition.notify_all()
            while True:
                with self._condition:
                    self._condition.wait_for(lambda: self._asked is not None or self._closed)
                    if self._closed:
                        return
                    assert self._asked is not None
                    (step, observation), self._asked = self._asked, None
                begun = time.perf_counter()
                action = self.controller.act(observation)
                self.seconds.append(time.perf_counter() - begun)
                if isinstance(self.controller, MPC) and self.controller.last is not None:
                    self.updates.append(len(self.controller.last.objective))
                with self._condition:
                    self._answer = step, action
                    self._condition.notify_all()
        except BaseException as error:  # the simulation's thread raises it
            with self._condition:
                self._error = error
                self._condition.notify_all()


@contextmanager
def quick_switches(seconds: float = 2e-4) -> Iterator[None]:
    """Let a Python thread that wakes have the interpreter soon: as it is, it may wait 5 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
