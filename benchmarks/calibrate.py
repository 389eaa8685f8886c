"""The constants of `jacrec.cost` from times measured on this machine.

python benchmarks/calibrate.py
"""

import argparse
import itertools

import numpy as np
import torch
from grad_speed import measure
from harness import use_threads
from problems import Size, make

from jacrec.cost import RATES, Rates, dynamics_costs
from jacrec.shapes import problem


def fit(rows: list[dict]) -> Rates:
    """Rates that explain forward's and adjoint's times best: least squares of the relative error, none negative."""
    counts = []
    for row in rows:
        case = make(Size(row["task"], row["M"], row["H"], row["K"], row["width"]))
        costs = dynamics_costs(case.dynamics.denoiser.mlp, case.dynamics.diffusion_steps, problem(*case.arguments))
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


def main(arguments: list[str] | None = None) -> None:
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--particles", nargs="+", type=int, default=[1, 4, 16, 64, 256], help="M")
    parser.add_argument("--threads", type=int, help="cores to use; all unless told")
    options = parser.parse_args(arguments)
    use_threads(options.threads)
    sizes = [Size(t, M, H) for t in ("hopper", "halfcheetah") for H in (1, 3, 5) for M in options.particles]
    rows = measure(sizes, ["forward", "adjoint"], device=options.device, budget=0.4)
    print(f"fitted {fit(rows)}\nin use {RATES[options.device]}")


if __name__ == "__main__":
    main()
