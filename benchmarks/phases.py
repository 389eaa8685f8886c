"""Time per phase of jacrec's gradients, measured by wrapping the functions that `jacrec.engine.gradient` calls:

* rollout: values of the dynamics. The forward form computes them together with the derivatives, so the chain is run
  once more without tangents;
* Jacobians: tangents through the chain (forward), its transpose (adjoint);
* policy and values: π, and reward and critic with their gradients, at each visited state;
* contraction: Σ w Π_ψ;
* sensitivities: the rest, i.e. the recursion of C and E, or of λ and w, with Π_s and all overhead.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

from harness import synchronise

import jacrec.engine.gradient as engine
from jacrec.engine.gradient import Visited

PHASES = ("rollout", "Jacobians", "policy and values", "contraction", "sensitivities")


def phases(gradient: Callable[[], object], device: str, repetitions: int = 3) -> dict[str, float]:
    """Milliseconds per phase, minimum over repetitions; empty if the gradient does not use these functions."""
    gradient()
    runs = []
    for _ in range(repetitions):
        clock = Clock(device)
        with clock.installed():
            synchronise(device)
            started = time.perf_counter()
            gradient()
            synchronise(device)
            total = time.perf_counter() - started - clock.extra
        if not clock.seconds["contraction"]:
            return {}
        clock.seconds["sensitivities"] = total - sum(clock.seconds.values())
        runs.append((total, clock.seconds))
    seconds = min(runs, key=lambda run: run[0])[1]
    return {name: round(1e3 * seconds[name], 4) for name in PHASES}


class Clock:
    """Seconds by phase while it is installed."""

    def __init__(self, device: str):
        self.device = device
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self.extra = 0.0
        """seconds of work that is only done for the measurement"""

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Wrap the engine's functions with this clock inside the block."""
        with (
            patch.object(engine, "dynamics_pass", lambda *args, **options: TimedPass(make_pass(*args, **options), self)),
            patch.object(engine, "policy_pass", self.around("policy and values", engine.policy_pass)),
            patch.object(Visited, "value_gradient", self.around("policy and values", Visited.value_gradient)),
            patch.object(Visited, "contract", self.around("contraction", Visited.contract)),
        ):
            yield

    def around(self, phase: str, function: Callable) -> Callable:
        """Wrap `function` to add its time to `phase`; nested timed functions are counted for the outer one only."""

        def timed(*args, **options):
            answer, seconds = self.measure(function, *args, **options)
            self.seconds[phase] += seconds
            return answer

        return timed

    def measure(self, function: Callable, *args, **options) -> tuple:
        """The result and the seconds it took; nested timed functions are not counted separately."""
        before = dict(self.seconds)
        synchronise(self.device)
        started = time.perf_counter()
        answer = function(*args, **options)
        synchronise(self.device)
        seconds = time.perf_counter() - started
        self.seconds.update(before)
        return answer, seconds


make_pass = engine.dynamics_pass


class TimedPass:
    """A `DynamicsPass` whose products are timed."""

    def __init__(self, inner, clock: Clock):
        self.inner, self.clock = inner, clock

    def push(self, state, action, noise, ds, da):
        _, rollout = self.clock.measure(self.inner.push, state, action, noise, ds[:, :0], da[:, :0])
        answer, both = self.clock.measure(self.inner.push, state, action, noise, ds, da)
        self.clock.extra += rollout
        self.clock.seconds["rollout"] += min(rollout, both)
        self.clock.seconds["Jacobians"] += max(both - rollout, 0.0)
        return answer

    def record(self, state, action, noise):
        (next_state, pull), seconds = self.clock.measure(self.inner.record, state, action, noise)
        self.clock.seconds["rollout"] += seconds
        return next_state, self.clock.around("Jacobians", pull)
