"""Time of one decision, `MPC.act`, compared with the time step of the environment.

First for one environment: median, 99th percentile and maximum in milliseconds, and the share of the time step. Then for N
environments in lock-step, `MPC(batch=N)`, with the ratio to N = 1. Then with a user's own networks of the same layers, taken in
turn with jacrec's: an `nn.Sequential` as the policy, views of such networks as reward and critic, and those two as functions
that torch differentiates, each also by autograd. Weights are random, since time does not depend on them.
Writes benchmarks/results/decision_speed_<device>_<machine>.json.

    python benchmarks/decision_speed.py
    python benchmarks/decision_speed.py --tasks hopper --particles 64 --horizon 3 --updates 2 --json /tmp/decisions.json
"""

import argparse
import importlib
import itertools
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from fallback_speed import Value, mlp
from harness import as_usual, environment, percentiles, record, slug, synchronise, timed, use_threads
from problems import MODELS, TASKS, Size, make
from torch import nn

from jacrec import MPC, MPCConfig, RewardModel, TwinCritic, World
from jacrec.experimental import ExperimentalConfig

TIME_STEPS = {"hopper": 0.008, "halfcheetah": 0.05, "walker2d": 0.008}
"""seconds between actions: the model's time step times frame_skip (Gymnasium's Hopper-v4 and Walker2d-v4: 0.002 · 4,
HalfCheetah-v4: 0.01 · 5); used if gymnasium is not installed"""
ENVIRONMENTS = {"hopper": "Hopper-v4", "halfcheetah": "HalfCheetah-v4", "walker2d": "Walker2d-v4"}
DECISION_GOALS = (("hopper", "diffusion", 16, 5, 10, 1, 8.0), ("hopper", "meanflow", 16, 5, 1, 1, 1.5))
"""task, world model, M, H, K, E, and the milliseconds permitted per decision"""
CHEAP = (("ddim", 3), ("flow", 4), ("meanflow", 1), ("deterministic", 1), ("ensemble", 1), ("multistep", 1))
"""world models with few network evaluations, and their number"""
OBJECTIVES = ("decoupled-critic", "decoupled-one-step")
"""other objectives than the return, timed with MeanFlow"""
LOCKSTEP_GOAL = (10, 3.0)
"""N and the permitted ratio of their joint time to one decision"""


def time_step_ms(task: str) -> tuple[float | None, str]:
    """Milliseconds between two actions of the real environment (None if unknown), and its name."""
    if task not in TIME_STEPS:
        return None, "no environment"
    try:
        gymnasium, mujoco = (importlib.import_module(name) for name in ("gymnasium", "mujoco"))
    except ImportError:
        return 1e3 * TIME_STEPS[task], "constant"
    mujoco.set_mju_user_warning(lambda message: None)  # otherwise MuJoCo writes a log file about an attribute of the model
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about newer versions of the environments
            env = gymnasium.make(ENVIRONMENTS[task])
    finally:
        mujoco.set_mju_user_warning(None)
    step = float(env.unwrapped.dt)
    env.close()
    return 1e3 * step, ENVIRONMENTS[task]


@dataclass(frozen=True)
class Ask:
    """How decisions are made and timed."""

    updates: int
    device: str
    repetitions: int
    budget: float


def decisions(size: Size, ask: Ask, *, batch: int | None = None, objective: str = "return") -> dict:
    """Milliseconds of sequential `MPC.act` calls on numpy observations: median, p99 and maximum, and the number of calls."""
    case = make(size, device=ask.device)
    config = MPCConfig(horizon=size.H, particles=size.M, updates=ask.updates)
    update = ExperimentalConfig(objective=objective).make_update()
    controller = MPC(case.policy, case.world, config, batch=batch, update=update)
    rng = np.random.default_rng(0)
    shape = (size.d,) if batch is None else (batch, size.d)
    observations = rng.standard_normal((ask.repetitions + 3, *shape)).astype(np.float32)
    samples: list[float] = []
    for i, observation in enumerate(observations):
        synchronise(ask.device)
        started = time.perf_counter()
        controller.act(observation)
        if i >= 3:
            samples.append(1e3 * (time.perf_counter() - started))
        if sum(samples) > 1e3 * ask.budget and len(samples) >= 10:
            break
    numbers = percentiles(samples, (50, 99))
    return {**numbers, "max": round(max(samples), 4), "decisions": len(samples)}


def own_networks(size: Size, ask: Ask) -> dict:
    """Milliseconds of decisions with own networks of the same layers, by what is a user's and how it is differentiated."""
    case = make(size, device=ask.device)
    hidden, both = (size.width,) * 3, size.d + size.m
    policy = mlp(size.d, hidden, size.m, nn.Tanh()).to(ask.device)
    values = [Value(both, hidden).to(ask.device).requires_grad_(False) for _ in range(3)]
    reward, *critics = (value.net for value in values)
    views = replace(
        case.world,
        reward=RewardModel.from_module(reward, state_dim=size.d),
        critic=TwinCritic.from_modules(*critics, state_dim=size.d),
    )
    functions = replace(case.world, reward=values[0], critic=lambda s, a: torch.minimum(values[1](s, a), values[2](s, a)))
    problems: dict[str, tuple[nn.Module, World]] = {
        "jacrec's": (case.policy, case.world),
        "policy": (policy, case.world),
        "all": (policy, views),
        "policy, and functions": (policy, functions),
    }
    observation = np.random.default_rng(0).standard_normal(size.d).astype(np.float32)

    def decide(policy: nn.Module, world: World, method: str) -> Callable[[], object]:
        controller = MPC(policy, world, MPCConfig(horizon=size.H, particles=size.M, updates=ask.updates, method=method))
        return lambda: controller.act(observation)

    ways = itertools.product(problems, ("auto", "autograd"))
    calls = {f"{name}, {method}": decide(*problems[name], method) for name, method in ways}
    ms = timed(calls, ask.repetitions, ask.device, budget=ask.budget)
    base = ms["jacrec's, auto"]["median"]
    ratios = {name: round(found["median"] / base, 3) for name, found in ms.items()}
    return {**asdict(size), "updates": ask.updates, "ms": ms, "ratio": ratios}


def goal_lines(rows: list[dict], lockstep: list[dict]) -> list[str]:
    """Whether the goals given by the module's constants are reached."""
    lines = []
    for *wanted, limit in DECISION_GOALS:
        task, model, M, H, K, E = wanted
        for row in rows:
            if [row[key] for key in ("task", "model", "M", "H", "K", "updates", "objective")] == [*wanted, "return"]:
                met = "reached" if row["ms"]["median"] <= limit else "NOT reached"
                lines.append(
                    f"goal: {task} {model} M {M} H {H} K {K} E {E} in {limit:g} ms: {met}, median "
                    f"{row['ms']['median']:.2f}, p99 {row['ms']['p99']:.2f}"
                )
    N, most = LOCKSTEP_GOAL
    for row in lockstep:
        if row["N"] == N:
            met = "reached" if row["ratio_to_one"] <= most else "NOT reached"
            lines.append(
                f"goal: {N} in lock-step cost at most {most:g}× one ({row['task']} M {row['M']} H {row['H']}): {met}, "
                f"{row['ratio_to_one']:.2f}×"
            )
    return lines


def main(arguments: list[str] | None = None) -> dict:
    """Time, print and write; the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["hopper", "halfcheetah"])
    parser.add_argument("--particles", nargs="+", type=int, default=[1, 16, 64], help="M")
    parser.add_argument("--horizon", nargs="+", type=int, default=[3, 5], help="H")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="world models (default: all)")
    parser.add_argument("--steps", type=int, default=10, help="K denoising steps of the diffusion")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--updates", type=int, default=1, help="E gradient steps per decision")
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 2, 5, 10, 20], help="N environments in lock-step")
    parser.add_argument("--batch-particles", type=int, default=16, help="M in lock-step")
    parser.add_argument("--batch-horizon", type=int, default=5, help="H in lock-step")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repetitions", type=int, default=200, help="number of decisions")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds per setting; at least ten decisions are made")
    parser.add_argument("--threads", type=int, help="cores to use (default: all)")
    parser.add_argument("--json", type=Path, help="output path (default for standard sizes: benchmarks/results)")
    options = parser.parse_args(arguments)
    use_threads(options.threads)
    ask = Ask(options.updates, options.device, options.repetitions, options.budget)
    rows, lockstep = [], []
    print(f"{'':58s}{'median':>9s}{'p99':>9s}{'max':>9s}  ms, share of the time step")
    steps = {"diffusion": options.steps, **dict(CHEAP)}
    ways = [(name, "return") for name in options.models or steps]
    ways += [(name, objective) for name, _ in ways if name == "meanflow" for objective in OBJECTIVES]
    for task in options.tasks:
        step, source = time_step_ms(task)
        for (model, objective), (H, M) in itertools.product(ways, itertools.product(options.horizon, options.particles)):
            size = Size(task, M, H, steps[model], options.width, model)
            ms = decisions(size, ask, objective=objective)
            rows.append(
                {
                    **asdict(size),
                    "objective": objective,
                    "updates": ask.updates,
                    "ms": ms,
                    "time_step_ms": step,
                    "time_step_of": source,
                }
            )
            share = "" if step is None else f"{ms['median'] / step:8.0%} of {step:g} ms ({source})"
            name = f"{task} {model} M {M} H {H} K {size.K} E {ask.updates}"
            name += "" if objective == "return" else f" {objective}"
            print(f"{name:58s}{ms['median']:9.2f}{ms['p99']:9.2f}{ms['max']:9.2f}{share}", flush=True)
    for task in options.tasks:
        one = None
        for N in options.batch:
            size = Size(task, options.batch_particles, options.batch_horizon, options.steps, options.width)
            ms = decisions(size, ask, batch=N)
            one = one or ms["median"] / N  # ratios are relative to the first N
            ratio = ms["median"] / one
            lockstep.append({**asdict(size), "N": N, "updates": options.updates, "ms": ms, "ratio_to_one": round(ratio, 3)})
            name = f"{task} M {size.M} H {size.H} × {N} in lock-step"
            print(f"{name:58s}{ms['median']:9.2f}{ms['p99']:9.2f}{ms['max']:9.2f}{ratio:8.2f}× one", flush=True)
    own = []
    for task, (H, M) in itertools.product(options.tasks, itertools.product(options.horizon, options.particles)):
        own.append(own_networks(Size(task, M, H, options.steps, options.width), ask))
        for name, ratio in own[-1]["ratio"].items():
            label = f"{task} M {M} H {H} own networks: {name}"
            print(f"{label:58s}{own[-1]['ms'][name]['median']:9.2f}{ratio:8.2f}× jacrec's", flush=True)
    goals = goal_lines(rows, lockstep)
    print("\n".join(goals))
    result = {"environment": environment(options.device), "rows": rows, "lockstep": lockstep, "own": own, "goals": goals}
    record(f"decision_speed_{slug(options.device)}", result, options.json, as_usual(parser, options))
    return result


if __name__ == "__main__":
    main()
