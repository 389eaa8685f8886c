"""Time of one policy gradient: Forward and Adjoint against torch's autograd, on the same weights and noise.

First every contestant's gradient is compared with autograd's in float64; nothing is timed unless they agree. Then
milliseconds per gradient (median, and the 20th and 80th percentile), and the ratio to autograd. Writes
benchmarks/results/grad_speed_<device>.json.

    python benchmarks/grad_speed.py                         # hopper and halfcheetah sizes, M from 1 to 256, under two minutes
    python benchmarks/grad_speed.py --tasks walker2d --particles 16 --horizon 5 --steps 20
    python benchmarks/grad_speed.py --fit                   # and the constants of jacrec/cost.py from these times
"""

import argparse
import itertools
from functools import partial

import numpy as np
import torch
from harness import environment, timed, write

from jacrec import (
    Actor,
    Adjoint,
    Auto,
    Autograd,
    DiffusionDynamics,
    Forward,
    RewardModel,
    TwinCritic,
    World,
    policy_gradient,
)  # fmt: skip
from jacrec.cost import RATES, Rates, dynamics_costs
from jacrec.shapes import problem

SIZES = {"hopper": (11, 3), "halfcheetah": (17, 6), "walker2d": (17, 6), "antmaze": (29, 8)}
CONTESTANTS = {
    "autograd": Autograd(),
    "forward": Forward(),
    "adjoint": Adjoint(),
    "adjoint recomputed": Adjoint(recompute=True),
    "auto": Auto(),
}


def make(task: str, M: int, H: int, K: int, width: int, device: str) -> tuple:
    """Policy, world, state, noise of one size: actor, denoiser and critic of three hidden layers."""
    d, m = SIZES[task]
    torch.manual_seed(0)
    hidden = (width,) * 3
    actor = Actor(d, m)
    actor.mlp.initialise()  # ReBRAC's own start has a last layer near zero: no gradient to compare
    world = World(DiffusionDynamics(d, m, hidden, steps=K), RewardModel(d, m, hidden), TwinCritic(d, m), 0.99).to(device)
    return actor.to(device), world, torch.randn(d).to(device), torch.randn(M, H, K + 1, d).to(device)


def disagreement(arguments: tuple) -> float:
    """The largest relative difference of any contestant's gradient from autograd's, in float64."""
    actor, world, state, noise = arguments
    exact = actor.double(), world.to(torch.float64), state.double(), noise.double()
    flat = {}
    for name, method in CONTESTANTS.items():
        flat[name] = torch.cat([g.flatten() for g in policy_gradient(*exact, method=method).gradient.values()])
    actor.float()
    world.to(torch.float32)
    reference = flat["autograd"]
    return max(float((g - reference).norm() / reference.norm()) for g in flat.values())


def fit(rows: list[dict]) -> Rates:
    """Rates that explain forward's and adjoint's times best: least squares of the relative error, none negative."""
    counts = []
    for row in rows:
        arguments = make(row["task"], row["M"], row["H"], row["K"], row["width"], "cpu")
        f = arguments[1].dynamics
        costs = dynamics_costs(f.denoiser.mlp, f.diffusion_steps, problem(*arguments))
        for name, cost in zip(("forward", "adjoint"), costs, strict=True):
            seconds = row["ms"][name]["median"] * 1e-3
            counts.append(np.array([cost.operations, cost.multiplications, cost.traffic]) / seconds)
    A, b = np.array(counts), np.ones(len(counts))
    best, least = np.zeros(3), np.inf
    for kept in itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in (1, 2, 3)):
        x = np.zeros(3)
        x[list(kept)] = np.linalg.lstsq(A[:, kept], b, rcond=None)[0]
        error = np.square(A @ x - b).sum()
        if (x >= 0).all() and error < least:
            best, least = x, error
    return Rates(*best.tolist())


def main() -> None:
    """Compare, time, print, write."""
    parser = argparse.ArgumentParser(description="Time of one policy gradient.")
    parser.add_argument("--tasks", nargs="+", choices=SIZES, default=["hopper", "halfcheetah"])
    parser.add_argument("--particles", nargs="+", type=int, default=[1, 4, 16, 64, 256], help="M")
    parser.add_argument("--horizon", nargs="+", type=int, default=[1, 3, 5], help="H")
    parser.add_argument("--steps", type=int, default=10, help="K denoising steps")
    parser.add_argument("--width", type=int, default=256, help="of the denoiser's and reward model's three hidden layers")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--fit", action="store_true", help="fit the constants of jacrec/cost.py")
    parser.add_argument("--threads", type=int, default=None, help="of torch; as many as it takes unless told")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    K, width = options.steps, options.width
    rows = []
    print(f"{'task':12s}{'M':>5s}{'H':>3s}" + "".join(f"{name:>20s}" for name in CONTESTANTS) + f"{'best/autograd':>16s}")
    for task in options.tasks:
        for H in options.horizon:
            for M in options.particles:
                arguments = make(task, M, H, K, width, options.device)
                difference = disagreement(arguments)
                if not difference < 1e-9:
                    raise SystemExit(f"{task}, M = {M}, H = {H}: the gradients differ by {difference:.1e}; nothing was timed")
                calls = {name: partial(policy_gradient, *arguments, method=method) for name, method in CONTESTANTS.items()}
                ms = timed(calls, options.repetitions, options.device)
                ratio = ms["autograd"]["median"] / min(ms["forward"]["median"], ms["adjoint"]["median"])
                rows.append(dict(task=task, M=M, H=H, K=K, width=width, difference=difference, ms=ms))
                cells = "".join(f"{v['median']:9.2f} ({v['p20']:4.1f}–{v['p80']:4.1f})"[:20].rjust(20) for v in ms.values())
                print(f"{task:12s}{M:5d}{H:3d}{cells}{ratio:15.2f}×", flush=True)
    regret = max(r["ms"]["auto"]["median"] / min(r["ms"]["forward"]["median"], r["ms"]["adjoint"]["median"]) for r in rows)
    print(f"milliseconds, median (p20–p80). All gradients agree to {max(r['difference'] for r in rows):.0e} in float64.")
    print(f"Auto is at most {regret:.2f}× the better of forward and adjoint (timing noise included).")
    if options.fit:
        print(f"fitted {fit(rows)}\nin use {RATES[options.device]}")
    print(write(f"grad_speed_{options.device}", {"environment": environment(options.device), "rows": rows}))


if __name__ == "__main__":
    main()
