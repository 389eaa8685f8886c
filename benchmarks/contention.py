"""What does a decision take while other processes want the cores? One and two threads, beside 0, 1 and 2 spinning processes.

Every contestant is a process of its own, and they take turns, so that whatever else the machine does meets all of them. With
`--against` another checkout of jacrec, of an earlier version for example, decides in turn with this one. Networks of the
paper's sizes with random weights, Hopper's dimensions, one update.

    python benchmarks/contention.py --json /tmp/contention.json
    python benchmarks/contention.py --load 0 1 2 --threads 1 2 --against ../earlier
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
SPIN = "while True: pass"
FIGURES = ("p50", "mean", "p99", "max")


def serve(threads: int, M: int, H: int, K: int, width: int) -> None:
    """Make as many decisions as every line of the input says; their milliseconds as a line of JSON."""
    import numpy as np
    import torch
    from problems import Size, make

    from jacrec import MPC, MPCConfig

    torch.set_num_threads(threads)
    case = make(Size("hopper", M, H, K, width))
    control = MPC(case.policy, case.world, MPCConfig(horizon=H, particles=M, updates=1, lr=1e-9))
    observation = np.zeros(case.policy.state_dim)
    control.warm_up(observation)
    print("ready", flush=True)
    for line in sys.stdin:
        ms = []
        for _ in range(int(line)):
            begun = time.perf_counter()
            control.act(observation)
            ms.append(1e3 * (time.perf_counter() - begun))
        print(json.dumps(ms), flush=True)


class Contestant:
    """A process that decides when asked to."""

    def __init__(self, folder: Path, threads: int, options: argparse.Namespace):
        self.folder, self.threads = folder, threads
        sizes = [str(x) for x in (options.particles, options.horizon, options.steps, options.width)]
        command = [sys.executable, __file__, "--serve", str(threads), *sizes]
        # the problems are this checkout's, jacrec is the folder's
        paths = [str(folder), str(HERE / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: the process ended with status {self.process.wait()}")
        return line

    @property
    def name(self) -> str:
        """Checkout and threads."""
        where = "" if self.folder == HERE else f"{self.folder.name}, "
        return f"{where}{self.threads} thread{'s' * (self.threads > 1)}"

    def decide(self, count: int) -> list[float]:
        """Milliseconds of so many decisions."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return json.loads(self._answer())

    def end(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def spinning(count: int) -> Iterator[None]:
    """So many processes that never rest."""
    processes = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    try:
        time.sleep(0.3 * (count > 0))
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def rows(contestants: list[Contestant], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Figures for every load and contestant."""
    from harness import Others

    for load in options.load:
        with spinning(load):
            ms: list[list[float]] = [[] for _ in contestants]
            others = Others()
            for _ in range(options.turns):
                for contestant, own in zip(contestants, ms, strict=True):
                    own += contestant.decide(options.decisions)
            share = others.share()
        for contestant, own in zip(contestants, ms, strict=True):
            yield {"load": load, "contestant": contestant.name, "others": round(share, 3), **figures(own)}


def figures(ms: list[float]) -> dict[str, float]:
    """Median, mean, 99th percentile and maximum."""
    import numpy as np

    values = np.median(ms), np.mean(ms), np.quantile(ms, 0.99), np.max(ms)
    return {name: round(float(value), 3) for name, value in zip(FIGURES, values, strict=True)}


def markdown(found: list[dict[str, Any]]) -> str:
    """The figures in Markdown."""
    lines = [f"| spinning processes | | {' | '.join(f'{name}, ms' for name in FIGURES)} |", "|" + "---|" * (2 + len(FIGURES))]
    for row in found:
        cells = " | ".join(f"{row[name]:.2f}" for name in FIGURES)
        lines.append(f"| {row['load']} | {row['contestant']} | {cells} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run, print and write; the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", nargs="+", type=int, default=[0, 1, 2], help="spinning processes")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--particles", type=int, default=16, help="M")
    parser.add_argument("--horizon", type=int, default=3, help="H")
    parser.add_argument("--steps", type=int, default=10, help="K")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--decisions", type=int, default=100, help="in each turn")
    parser.add_argument("--against", type=Path, nargs="*", default=[], help="folders of other checkouts")
    parser.add_argument("--json", type=Path, help="output path (default for standard settings: benchmarks/results)")
    parser.add_argument("--serve", nargs=5, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(*options.serve)
        return []
    from harness import as_usual, environment, record

    folders = [HERE, *(path.resolve() for path in options.against)]
    contestants = [Contestant(folder, threads, options) for folder in folders for threads in options.threads]
    try:
        found = list(rows(contestants, options))
    finally:
        for contestant in contestants:
            contestant.end()
    print(markdown(found))
    sizes = {name: getattr(options, name) for name in ("particles", "horizon", "steps", "width", "turns", "decisions")}
    record("contention", {"environment": environment(), **sizes, "rows": found}, options.json, as_usual(parser, options))
    return found


if __name__ == "__main__":
    main()
