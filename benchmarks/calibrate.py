"""The constants of `jacrec.engine.cost` from times measured on this machine: for plain and fused kernels, beside those in use.

python benchmarks/calibrate.py                     # or: jacrec bench calibrate
python benchmarks/calibrate.py --from FILE.json    # from the results of a run of grad_speed
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from grad_speed import measure
from harness import environment, slug, use_threads, write
from problems import Size, make

from jacrec.engine.cost import RATES, Rates, Sizes, costs
from jacrec.engine.shapes import problem

NAMES = {
    ("forward", "plain"): "forward",
    ("adjoint", "plain"): "adjoint",
    ("forward", "fused"): "forward fused",
    ("adjoint", "fused"): "adjoint fused",
}
"""(form, kernel) of the cost model -> the contestant that it is about"""


def fit(rows: list[dict], kernel: str, device: str) -> Rates:
    """Rates of a kernel that explain its times in the rows best: least squares of the relative error, none negative.

    Raises:
        ValueError: no row has a time of that kernel.
    """
    counts = []
    for row in rows:
        case = make(Size(row["task"], row["M"], row["H"], row["K"], row["width"], row.get("model", "diffusion")), device=device)
        for choice, cost in costs(Sizes.of(problem(*case.arguments))).items():
            if choice[1] == kernel and NAMES[choice] in row["ms"]:
                seconds = 1e-3 * row["ms"][NAMES[choice]]["median"]
                counts.append(np.array([cost.operations, cost.multiplications, cost.traffic]) / seconds)
    if not counts:
        raise ValueError(f"rows: expected times of {kernel} kernels ({', '.join(NAMES.values())}), got none")
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
    """Measure or read, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--particles", nargs="+", type=int, default=[1, 4, 16, 64, 256], help="M")
    parser.add_argument("--horizon", nargs="+", type=int, default=[1, 3, 5], help="H")
    parser.add_argument("--threads", type=int, help="cores to use; all unless told")
    parser.add_argument("--from", dest="file", type=Path, metavar="FILE", help="results to fit instead of measuring")
    options = parser.parse_args(arguments)
    use_threads(options.threads)
    if options.file:
        rows = json.loads(options.file.read_text(encoding="utf-8"))["rows"]
    else:
        sizes = [Size(t, M, H) for t in ("hopper", "halfcheetah") for H in options.horizon for M in options.particles]
        sizes += [Size("antmaze", M, 3, K, width) for K, width in ((2, 256), (20, 128), (5, 512)) for M in options.particles]
        sizes += [Size("hopper", M, H, 1, 256, "meanflow") for H in options.horizon for M in options.particles]
        rows = measure(sizes, list(NAMES.values()), device=options.device, budget=0.4)
        name = f"calibration_{slug(options.device)}"
        print(write(name, {"environment": environment(options.device), "rows": rows}))
    for kernel in ("plain", "fused"):
        print(
            f"{kernel}: fitted {fit(rows, kernel, options.device)}\n{' ' * len(kernel)}  in use {RATES[options.device, kernel]}"
        )


if __name__ == "__main__":
    main()
