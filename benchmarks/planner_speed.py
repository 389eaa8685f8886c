"""Time of one decision of Algorithm 1 and of every action planner with the same budget of model calls.

A model call is one transition of the world model; a differentiated one counts twice (`jacrec.planners.model_calls`). best-of-q
makes none and evaluates the critic as often instead. Milliseconds for one environment, and for N in lock-step together. Weights
are random, since time does not depend on them. Before timing, the action gradient is compared with autograd.
Writes benchmarks/results/planner_speed_<device>_<machine>.json.

    python benchmarks/planner_speed.py
    python benchmarks/planner_speed.py --calls 240 --horizon 5 --batch 1 20 --json /tmp/planners.json
"""

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from harness import as_usual, environment, record, slug, timed, use_threads
from problems import MODELS, TASKS, Case, Size, make

from jacrec import MPC, MPCConfig
from jacrec.planners import PLANNERS, Planner, PlannerConfig, model_calls, within_budget
from jacrec.planners.gradient import action_gradient
from tests.oracles import plan_return

MOST = 1e-10
"""permitted relative error of the action gradient in float64"""
PARTICLES = {"best-of-return": 2, "action-gradient": 4}
"""iterations of planners; 1 for the others"""


def contestants(calls: int, horizon: int) -> dict[str, MPCConfig | PlannerConfig]:
    """The ψ-gradient with four particles, reset at every decision, and all planners, within `calls`."""
    found: dict[str, MPCConfig | PlannerConfig] = {
        "psi-gradient": MPCConfig(horizon=horizon, particles=4, updates=calls // (8 * horizon), carry="step")
    }
    for name in PLANNERS:
        H, M = (0 if name == "best-of-q" else horizon), PARTICLES.get(name, 1)
        found[name] = within_budget(PlannerConfig(planner=name, horizon=H, particles=M), calls)
    return found


def player(case: Case, own: MPCConfig | PlannerConfig, batch: int) -> MPC | Planner:
    """The controller for N environments."""
    if isinstance(own, PlannerConfig):
        return Planner(case.policy, case.world, own, batch=batch)
    return MPC(case.policy, case.world, own, batch=batch)


def disagreement(case: Case) -> float:
    """Relative error of the action gradient compared with autograd, at zero actions."""
    plan = case.state.new_zeros(case.size.H, case.size.m, requires_grad=True)
    (expected,) = torch.autograd.grad(plan_return(case.policy, case.world, case.state, plan, case.noise), plan)
    states, plans, noise = (x.detach().unsqueeze(0) for x in (case.state, plan, case.noise))
    found = action_gradient(case.policy, case.world, states, plans, noise)[1][0]
    return float((found - expected).norm() / expected.norm())


def main(arguments: list[str] | None = None) -> dict:
    """Compare, time, print and write; the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="hopper")
    parser.add_argument("--model", choices=MODELS, default="diffusion", help="world model")
    parser.add_argument("--steps", type=int, default=5, help="K network evaluations per transition")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--calls", type=int, default=72, help="transitions of the world model per decision and environment")
    parser.add_argument("--horizon", type=int, default=3, help="H")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 10], help="N environments in lock-step")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repetitions", type=int, default=100, help="number of decisions")
    parser.add_argument("--threads", type=int, help="cores to use (default: all)")
    parser.add_argument("--json", type=Path, help="output path (default for standard sizes: benchmarks/results)")
    options = parser.parse_args(arguments)
    use_threads(options.threads)
    size = Size(options.task, 4, options.horizon, options.steps, options.width, options.model)
    error = disagreement(make(size, dtype=torch.float64))
    if not error <= MOST:
        raise AssertionError(f"action gradient: expected a relative error of at most {MOST:g} to autograd, got {error:.2g}")
    case, rows = make(size, device=options.device), []
    players = contestants(options.calls, options.horizon)
    generator = torch.Generator().manual_seed(0)
    for N in options.batch:
        state = torch.randn(N, size.d, generator=generator).to(options.device)
        acting = {}
        for name, own in players.items():
            acting[name] = partial(player(case, own, N).act, state)
        times = timed(acting, options.repetitions, options.device, turns=10, settle=1, budget=10.0)
        for name, own in players.items():
            rows.append({"contestant": name, "N": N, "calls": model_calls(own), "ms": times[name], "settings": asdict(own)})
            print(
                f"{name:16s} N {N:3d} {model_calls(own):5d} calls {times[name]['median']:9.2f} ms "
                f"({times[name]['p20']:.2f}–{times[name]['p80']:.2f})",
                flush=True,
            )
    result = {"environment": environment(options.device), "size": asdict(size), "error": error, "rows": rows}
    record(f"planner_speed_{slug(options.device)}", result, options.json, as_usual(parser, options))
    return result


if __name__ == "__main__":
    main()
