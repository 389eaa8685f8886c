"""A control loop with a deadline: decision times, misses, memory, context switches."""

import gc
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from ctypes import CDLL, Structure, c_size_t
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from harness import Others, environment, use_threads
from problems import Size, make

from jacrec import MPC, MPCConfig
from jacrec.control.deadline import realtime
from jacrec.envs.physics import make_env

QUANTILES = (0.5, 0.9, 0.99, 0.999, 0.9999)
LOOKS = (1_000, 10_000)
"""numbers of decisions after which memory is measured, in addition to start and end. Python's free lists fill during the first
thousands of decisions; afterwards memory must not grow"""


@dataclass(frozen=True)
class Setting:
    """Settings of one loop."""

    model: str
    """kind of world model, `problems.MODELS`"""
    K: int
    updates_asked: int
    """maximum E"""
    threads: int
    decisions: int
    deadline_ms: float = 8.0
    M: int = 16
    H: int = 5
    width: int = 256
    paced: bool = False
    """one decision every `deadline_ms`, as in a control loop, instead of back to back"""
    collector: bool = False
    """keep Python's garbage collector enabled; it is disabled otherwise (`jacrec.control.deadline.realtime`)"""

    @property
    def size(self) -> Size:
        return Size("hopper", self.M, self.H, self.K, self.width, self.model)


class Hopper:
    """Gymnasium's Hopper-v4; when an episode ends, the next one starts with the next seed."""

    def __init__(self) -> None:
        self.env = make_env("Hopper-v4", disable_env_checker=True)
        self.seed = 0
        self.observation = self.env.reset(seed=0)[0]

    def step(self, action: np.ndarray) -> bool:
        """Advance by one control interval; whether a new episode has started."""
        self.observation, _, terminated, truncated, _ = self.env.step(action)
        if over := terminated or truncated:
            self.seed += 1
            self.observation = self.env.reset(seed=self.seed)[0]
        return over


def measure(setting: Setting, every: int | None = None) -> Iterator[dict[str, Any]]:
    """Run the loop; yields a summary after every `every` decisions and at the end.

    The weights are random, since time does not depend on them. ψ is updated as in control: carried over between decisions and
    reset at the start of every episode.
    """
    use_threads(setting.threads)
    case = make(setting.size)
    control = MPC(
        case.policy,
        case.world,
        MPCConfig(horizon=setting.H, particles=setting.M, updates=setting.updates_asked, deadline_ms=setting.deadline_ms),
    )
    hopper, log = Hopper(), Log(setting)
    log.warm_up_seconds = control.warm_up(hopper.observation)
    every = every or setting.decisions
    with nullcontext() if setting.collector else realtime():
        log.begin()
        for i in range(setting.decisions):
            due = log.next_tick() if setting.paced else None
            switches = preemptions()
            started = due if due is not None else time.perf_counter()
            action = control.act(hopper.observation)
            ended = time.perf_counter()
            assert control.last is not None
            log.add(ended - started, len(control.last.objective), preemptions() - switches)
            if hopper.step(action):
                control.new_episode()
            if (i + 1) % every == 0 or i + 1 == setting.decisions:
                yield log.summary()


class Log:
    """Statistics of the decisions so far."""

    def __init__(self, setting: Setting):
        self.setting, self.n = setting, 0
        # preallocated: the log itself must not grow
        self.seconds = np.zeros(setting.decisions)
        self.updates = np.zeros(setting.decisions, np.int64)
        self.preempted = np.zeros(setting.decisions, bool)
        self.warm_up_seconds = 0.0
        self.memory: list[dict[str, int | None]] = []

    def begin(self) -> None:
        """Start the loop."""
        self.others, self.environment = Others(), environment() | {"cores": os.cpu_count()}
        self.usage, self.started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        self.tick = self.started
        self.memory.append({"decisions": 0, **memory()})

    def next_tick(self) -> float:
        """Wait for the next multiple of the control interval (spinning for the last 0.5 ms); its time."""
        interval = self.setting.deadline_ms * 1e-3
        self.tick += interval * max(1, -(-(time.perf_counter() - self.tick) // interval))
        while (left := self.tick - time.perf_counter()) > 0:
            if left > 1e-3:
                time.sleep(left - 5e-4)
        return self.tick

    def add(self, seconds: float, updates: int, preemptions: int) -> None:
        """Add a decision."""
        self.seconds[self.n], self.updates[self.n], self.preempted[self.n] = seconds, updates, preemptions > 0
        self.n += 1
        if self.n in LOOKS and self.n < self.setting.decisions:
            self.memory.append({"decisions": self.n, **memory()})

    def summary(self) -> dict[str, Any]:
        """A row of the results for the decisions so far."""
        now = memory()
        ms, updates = 1e3 * self.seconds[: self.n], self.updates[: self.n]
        late = ms > self.setting.deadline_ms
        quantiles = {f"p{100 * q:g}": round(float(np.quantile(ms, q)), 4) for q in QUANTILES}
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "decided": self.n,
            "misses": int(late.sum()),
            "misses_while_preempted": int((late & self.preempted[: self.n]).sum()),
            "preempted": int(self.preempted[: self.n].sum()),
            "worst_lateness_ms": round(float(max(ms.max() - self.setting.deadline_ms, 0.0)), 4),
            "ms": {**quantiles, "max": round(float(ms.max()), 4)},
            "updates": {"mean": round(float(updates.mean()), 3), "none": int((updates == 0).sum()), "most": int(updates.max())},
            "warm_up_seconds": round(self.warm_up_seconds, 3),
            "memory": [*self.memory, {"decisions": self.n, **now}],
            "involuntary_switches": usage.ru_nivcsw - self.usage.ru_nivcsw,
            "voluntary_switches": usage.ru_nvcsw - self.usage.ru_nvcsw,
            "page_faults": usage.ru_minflt - self.usage.ru_minflt,
            "others": round(self.others.share(), 4),
            "wall_seconds": round(time.perf_counter() - self.started, 1),
            "environment": self.environment,
        }


def preemptions() -> int:
    """Number of involuntary context switches of all threads of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def memory() -> dict[str, int | None]:
    """Resident bytes of this process, bytes allocated by malloc, and blocks and objects allocated by Python."""
    statm = Path("/proc/self/statm")
    resident = int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else None
    given = malloc_information()
    return {
        "rss": resident,
        "malloc": None if given is None else given(),
        "blocks": sys.getallocatedblocks(),
        "objects": len(gc.get_objects()),
    }


@cache
def malloc_information() -> Callable[[], int] | None:
    """A function that returns glibc's number of bytes in use; None if the C library is not glibc."""

    class Mallinfo2(Structure):
        _fields_ = [
            (name, c_size_t)
            for name in (
                "arena",
                "ordblks",
                "smblks",
                "hblks",
                "hblkhd",
                "usmblks",
                "fsmblks",
                "uordblks",
                "fordblks",
                "keepcost",
            )
        ]

    try:
        ask = CDLL(None).mallinfo2
    except (OSError, AttributeError):
        return None
    ask.restype = Mallinfo2

    def in_use() -> int:
        found: Any = ask()
        return found.uordblks + found.hblkhd  # in heaps, and in large mapped blocks

    return in_use
