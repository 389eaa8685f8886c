"""Does `MPC(deadline_ms=8)` keep Hopper's control interval? Misses, quantiles and memory over many decisions.

Every setting runs in its own process, on a real Hopper-v4 (MuJoCo) stepped with the actions, with networks of the paper's
sizes and random weights. Decision times are measured by the caller, from observation to action. With one update (E 1) there is
time to spare; with many, updates fill the interval as far as the controller permits. Results are written continuously to
benchmarks/results/deadline.json and .md. A hundred thousand decisions take up to 14 minutes per setting.

    python benchmarks/deadline.py
    python benchmarks/deadline.py --quick
    python benchmarks/deadline.py --models meanflow --threads 2 --paced --json /tmp/deadline.json
"""

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from control_loop import Setting, measure
from harness import RESULTS, as_usual, usable_cores, write

STEPS = {"diffusion": 10, "meanflow": 1}
"""world models and their network evaluations per transition, K"""
MANY = 10_000
"""more updates than fit into an interval"""
QUICK = 2_000
EVERY = 5_000
"""decisions between two writes of the results"""


def rows(setting: Setting, every: int = EVERY) -> Iterator[dict[str, Any]]:
    """`measure(setting)` in its own process, with its own threads and memory."""
    command = [sys.executable, __file__, "--one", json.dumps(asdict(setting)), "--every", str(every)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield {**asdict(setting), **json.loads(line)}
    if process.returncode:
        raise SystemExit(f"{setting}: the process failed with status {process.returncode}")


def line(row: dict[str, Any]) -> str:
    """A result as one line of text."""
    ms, (*_, before, now) = row["ms"], row["memory"]
    grown = "" if now["rss"] is None else f"  RSS {now['rss'] / 2**20:.0f} MiB ({(now['rss'] - before['rss']) / 2**20:+.1f})"
    return (
        f"{name(row):44s} {row['decided']:7d} decisions  missed {share(row)}, {row['misses_while_preempted']} preempted"
        f"  p50 {ms['p50']:.2f}  p99.9 {ms['p99.9']:.2f}  max {ms['max']:.2f} ms  E {row['updates']['mean']:.2f}"
        f"{grown}"
    )


def share(row: dict[str, Any]) -> str:
    """The fraction of decisions that missed the deadline, as text."""
    return f"{row['misses']} ({row['misses'] / row['decided']:.3%})"


def name(row: dict[str, Any]) -> str:
    """Description of a setting."""
    E = "many" if row["updates_asked"] == MANY else row["updates_asked"]
    ways = ", paced" * row["paced"] + ", collector on" * row["collector"]
    return f"{row['model']} K {row['K']}, E {E}, {row['threads']} thread{'s' * (row['threads'] > 1)}{ways}"


def markdown(found: list[dict[str, Any]]) -> str:
    """The results in Markdown."""
    first, where = found[0], found[0]["environment"]
    lines = [
        f"# A deadline of {first['deadline_ms']:g} ms on Hopper",
        "",
        f"{where['machine']}, {where['cores']} cores; torch {where['torch']}, numba {where['numba']}; commit {where['commit']},"
        f" {where['date']}. M {first['M']}, H {first['H']}, networks 3×{first['width']} with random weights, observations of "
        "Gymnasium's Hopper-v4 stepped by the actions. Milliseconds from the observation to the action. A decision counts as "
        "preempted where one of its threads had to leave its core.",
        "",
        f"| | decisions | missed | of those preempted | {' | '.join(first['ms'])} | updates made | no update | others on the "
        "machine |",
        "|" + "---|" * (7 + len(first["ms"])),
    ]
    for row in found:
        cells = [
            name(row),
            f"{row['decided']}",
            share(row),
            f"{row['misses_while_preempted']}",
            *(f"{x:.2f}" for x in row["ms"].values()),
            f"{row['updates']['mean']:.2f}",
            f"{row['updates']['none']}",
            f"{row['others']:.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Memory after {', '.join(str(p['decisions']) for p in first['memory'])} decisions; what malloc has given out and "
        "Python's blocks are those of the whole process, MuJoCo's and this script's too.",
        "",
        "| | warm-up, s | RSS, MiB | malloc, MiB | Python's blocks | page faults | involuntary, voluntary switches |",
        "|" + "---|" * 7,
    ]
    for row in found:
        points = row["memory"]
        mebi = [" → ".join("–" if p[key] is None else f"{p[key] / 2**20:.2f}" for p in points) for key in ("rss", "malloc")]
        cells = [
            name(row),
            f"{row['warm_up_seconds']:.2f}",
            *mebi,
            " → ".join(str(p["blocks"]) for p in points),
            f"{row['page_faults']}",
            f"{row['involuntary_switches']}, {row['voluntary_switches']}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def settings(options: argparse.Namespace) -> list[Setting]:
    """All combinations of the options, without more threads than cores."""
    threads = [t for t in options.threads if t <= usable_cores()]
    n = QUICK if options.quick else options.decisions
    return [
        Setting(model, STEPS[model], E, t, n, options.deadline_ms, paced=options.paced, collector=options.collector)
        for model, E, t in itertools.product(options.models, options.updates, threads)
    ]


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run, print and write; the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--updates", nargs="+", type=int, default=[1, MANY], help="maximum E; 10000 fills the interval")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--decisions", type=int, default=100_000)
    parser.add_argument("--deadline-ms", type=float, default=8.0)
    parser.add_argument("--paced", action="store_true", help="one decision per deadline instead of back to back")
    parser.add_argument("--collector", action="store_true", help="keep Python's garbage collector enabled")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} decisions")
    parser.add_argument("--json", type=Path, help="output path (default for standard settings: benchmarks/results)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--every", type=int, default=EVERY, help="decisions between two writes of the results")
    options = parser.parse_args(arguments)
    if options.one is not None:
        for row in measure(Setting(**json.loads(options.one)), options.every):
            print(json.dumps(row), flush=True)
        return []
    path = options.json or (RESULTS / "deadline.json" if as_usual(parser, options, "every") else None)
    done: list[dict[str, Any]] = []
    for setting in settings(options):
        latest: list[dict[str, Any]] = []
        for row in rows(setting, options.every):
            latest = [row]
            if path is not None:
                write("deadline", {"rows": done + latest}, path)
                path.with_suffix(".md").write_text(markdown(done + latest), encoding="utf-8")
        done += latest
        print(line(latest[0]), flush=True)
    print(f"written: {path}" if path else "non-standard settings: nothing was written; use --json PATH to keep the results")
    return done


if __name__ == "__main__":
    main()
