"""Live episodes: late actions are replaced by the last one, punctual ones change nothing; all endings are reported."""

import gc
import sys
import threading
import time
from contextlib import closing

import gymnasium
import numpy as np
import pytest
import torch

from jacrec import Actor, MPCConfig, cli
from jacrec.envs.physics import make_env
from jacrec.evaluation.episodes import PolicyController
from jacrec.evaluation.live import ControllerThread, LiveConfig, play_live, short_switch_interval, step_by_clock
from jacrec.training.run import load_run
from tests.small_run import hardly_trained

INTERVAL = 0.01


class Time:
    """A clock advanced by `sleep`, which waits until the controller has answered or is held up."""

    def __init__(self, thread, held_up=lambda: False):
        self.now, self.thread, self.held_up = 0.0, thread, held_up
        self.slept = 0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        patience = time.monotonic() + 30
        while self.thread.latest()[0] != self.slept and not self.held_up():
            assert time.monotonic() < patience, "the controller does not answer"
            time.sleep(1e-4)
        self.slept += 1
        self.now += seconds


class Counter:
    """An environment that observes the number of steps and records the actions."""

    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, ends=None):
        self.actions, self.ends = [], ends

    def reset(self, seed):
        return np.zeros(1), {}

    def step(self, action):
        self.actions.append(float(action[0]))
        n = len(self.actions)
        return np.array([float(n)]), 1.0, n == self.ends, False, {}


class Echo:
    """Returns the observation; for some observations only after a signal."""

    def __init__(self, late=()):
        self.late, self.waiting, self.go_on = set(late), False, threading.Event()

    def act(self, observation):
        if float(observation[0]) in self.late:
            self.go_on.clear()
            self.waiting = True
            assert self.go_on.wait(30)
        return observation.copy()


def test_punctual_actions_give_the_episode_of_an_evaluation():
    torch.manual_seed(0)
    controller = PolicyController(Actor(11, 3, (16,)))
    with closing(make_env("Hopper-v4")) as env:
        observation, _ = env.reset(seed=3)
        total, steps, over = 0.0, 0, False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(controller.act(np.asarray(observation)))
            total, steps, over = total + float(reward), steps + 1, terminated or truncated
        with ControllerThread(controller) as thread:
            clock = Time(thread)
            log = step_by_clock(env, thread, 3, INTERVAL, clock=clock, sleep=clock.sleep)
    assert (log.total, log.steps, log.ended) == (total, steps, "task")
    assert (log.held, log.longest_held, log.behind_ms) == (0, 0, 0.0)
    assert len(log.decision_ms) == steps
    assert log.wall_seconds == pytest.approx(steps * INTERVAL)


def test_late_actions_are_replaced_by_the_last_one():
    """Observation 3 takes three intervals; observation 4 is skipped, since 5 is the latest by then."""
    echo, env = Echo(late=[3.0]), Counter()

    def held_up():
        if echo.waiting and clock.slept == 5:  # finishes within its third interval
            echo.waiting = False
            echo.go_on.set()
        return echo.waiting

    with ControllerThread(echo) as thread:
        clock = Time(thread, held_up)
        log = step_by_clock(env, thread, 0, INTERVAL, 8, clock=clock, sleep=clock.sleep)
    assert env.actions == [0, 1, 2, 2, 2, 5, 6, 7]
    assert (log.held, log.longest_held, log.steps, log.ended) == (2, 2, 8, "seconds")


def test_default_action_before_the_first_decision():
    echo, env = Echo(late=[0.0]), Counter(ends=2)
    with ControllerThread(echo) as thread:
        clock = Time(thread, lambda: echo.waiting)
        log = step_by_clock(env, thread, 0, INTERVAL, clock=clock, sleep=clock.sleep)
        echo.go_on.set()
    assert env.actions == [0, 0]
    assert (log.held, log.ended) == (2, "task")


def test_errors_of_the_controller_thread_are_raised():
    class Broken:
        def act(self, observation):
            raise ValueError("observation: expected another")

    def sleep(seconds):
        time.sleep(0.01)

    with ControllerThread(Broken()) as thread, pytest.raises(ValueError, match="expected another"):
        step_by_clock(Counter(), thread, 0, INTERVAL, 1000, sleep=sleep)
    assert not any(other.name == "jacrec-controller" for other in threading.enumerate())


def test_interrupt_ends_the_episode():
    with ControllerThread(Echo()) as thread:
        clock = Time(thread)

        def sleep(seconds):
            if clock.slept == 3:
                raise KeyboardInterrupt
            clock.sleep(seconds)

        log = step_by_clock(Counter(), thread, 0, INTERVAL, clock=clock, sleep=sleep)
    assert (log.ended, log.steps, log.total) == ("interrupt", 3, 3.0)


def test_a_late_simulation_catches_up():
    now, pauses = [0.0], [0.0, 0.0, 2.5 * INTERVAL]

    def sleep(seconds):
        now[0] += seconds + (pauses.pop(0) if pauses else 0.0)

    with ControllerThread(Echo()) as thread:
        log = step_by_clock(Counter(), thread, 0, INTERVAL, 8, clock=lambda: now[0], sleep=sleep)
    assert log.behind_ms == pytest.approx(2.5e3 * INTERVAL)
    assert log.wall_seconds == pytest.approx(8 * INTERVAL)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    return hardly_trained(tmp_path_factory.mktemp("live"))


def test_live_episode(small_run):
    switch = sys.getswitchinterval()
    lines = []
    config = LiveConfig(seconds=0.2, speed=0.2, mpc=MPCConfig(horizon=1, particles=2, updates=3))
    log = play_live(load_run(small_run), config, status=lines.append)
    assert log.interval_ms == pytest.approx(40)
    assert log.deadline_ms == pytest.approx(36)
    assert 0 < log.steps <= 25
    assert log.wall_seconds >= log.steps * 0.04
    assert len(log.updates) == len(log.decision_ms) >= log.steps - log.held
    assert max(log.updates) <= 3
    assert lines
    assert all("return" in line for line in lines)
    assert gc.isenabled()
    assert sys.getswitchinterval() == switch


def test_live_command(small_run, capsys):
    args = ["live", str(small_run), "--seconds", "0.1", "--mpc.horizon", "1", "--mpc.particles", "2"]
    assert cli.main(args) == 0
    out = capsys.readouterr().out
    assert "late actions: " in out
    assert "updates per decision: " in out
    assert "with a deadline of 7.20 ms" in out
    assert cli.main([*args, "--base"]) == 0
    out = capsys.readouterr().out
    assert "updates per decision" not in out
    assert "decisions: p50" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--speed", "0"], "speed: expected a positive number, got 0"),
        (["--seconds", "-1"], "seconds: expected a positive number, got -1"),
        (["--mpc.deadline-ms", "3"], "mpc.deadline_ms: expected None, got 3.0"),
        (["--env-id", "HalfCheetah-v4"], "HalfCheetah-v4: expected state dimension 11, as in the run, got 17"),
    ],
)
def test_invalid_options(small_run, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(cli.main(["live", str(small_run), *options]))
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_switch_interval_is_restored():
    before = sys.getswitchinterval()
    with short_switch_interval(1e-3):
        assert sys.getswitchinterval() == pytest.approx(1e-3)
    assert sys.getswitchinterval() == pytest.approx(before)
