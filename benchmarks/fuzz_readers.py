"""Mutate data sets, run folders and models, and check what comes of each.

--subject data: data sets of every kind that the readers know. A case passes if the data are read as a plain loop reads them
("read"), or if they are refused with a ValueError or an OSError that names the file and the key ("refused").
--subject runs: networks, texts and checkpoints of a run; read as they were, or refused with an error that names the file.
--subject models: policies and worlds; the gradient is the right one ("read"), or an error names the part ("refused").

Anything else fails: another exception, a wrong number, a crash of the process, more than --seconds for a case. Cases run in
child processes with limited memory. A case of data is a kind, a mutation and the seed of its random numbers; it is reproduced
by --first N --cases 1. Cases of runs and models are drawn by Hypothesis, in blocks of 50 with a seed each; a case is reproduced
with its block.

    python benchmarks/fuzz_readers.py --cases 10000
    python benchmarks/fuzz_readers.py --subject runs --cases 8000
"""

import argparse
import json
import math
import multiprocessing
import os
import resource
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import hypothesis
import numpy as np
from harness import RESULTS, environment, write
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException

from tests.data.readers.mutations import mutations_for, outcome
from tests.data.readers.sources import KINDS, make
from tests.engine.alterations import alter
from tests.strategies import cases
from tests.training.damage import DAMAGES, damage, finished_run

MEMORY = 8 << 30
"""bytes of address space of a child: a damaged size must not exhaust the machine"""


BLOCK = 50
"""cases that Hypothesis draws with one seed"""
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example]
Check = Callable[[str, Callable], tuple[str, str]]
"""(kind, draw) -> (mutation, "read" or "refused")"""
FIRST_SECONDS = 600.0
"""longest duration of a child's start and first case, in which kernels may be compiled"""


def mutate_data(link: Connection, first: int, stop: int, seed: int) -> None:
    """Run cases in this process and send (number, kind, mutation, None) before and the same with a result after each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        for number in range(first, stop):
            rng = np.random.default_rng((seed, number))
            kind = KINDS[int(rng.integers(len(KINDS)))]
            mutations = mutations_for(kind)
            mutation, repair = mutations[int(rng.integers(len(mutations)))], bool(rng.integers(2))
            link.send((number, kind, mutation.__name__, None))
            with tempfile.TemporaryDirectory() as place:
                os.environ["MINARI_DATASETS_PATH"] = place
                case = make(kind, Path(place), Path(place))
                try:
                    result = outcome(case, mutation(case, rng), repair)
                except Exception:
                    result = traceback.format_exc(limit=-4)
            link.send((number, kind, mutation.__name__, result))


def mutate_runs(link: Connection, first: int, stop: int, seed: int) -> None:
    """As `mutate_data`, for the files of a run."""
    with tempfile.TemporaryDirectory() as place:
        finished = finished_run(Path(place) / "run")
        draw_cases(link, first, stop, seed, tuple(DAMAGES), lambda kind, draw: damage(finished, kind, draw))


def mutate_models(link: Connection, first: int, stop: int, seed: int) -> None:
    """As `mutate_data`, for policies and worlds."""
    problems = cases(max_H=2, max_M=2)
    draw_cases(link, first, stop, seed, ("model",), lambda kind, draw: alter(draw(problems), draw))


def draw_cases(link: Connection, first: int, stop: int, seed: int, kinds: Sequence[str], check: Check) -> None:
    """Run cases that Hypothesis draws; kinds take turns by block."""
    for block in range(first // BLOCK, -(-stop // BLOCK)):
        numbers = range(block * BLOCK, min((block + 1) * BLOCK, stop))
        draw_block(link, numbers, seed * 1_000_003 + block, kinds[block % len(kinds)], check)


def draw_block(link: Connection, numbers: range, seed: int, kind: str, check: Check) -> None:
    """Run the cases of one seed."""
    left = iter(numbers)

    @hypothesis.seed(seed)
    @settings(
        max_examples=len(numbers),
        phases=(Phase.generate,),
        database=None,
        deadline=None,
        suppress_health_check=QUIET,
    )
    @hypothesis.given(data=st.data())
    def run(data):
        number = next(left, None)  # None: beyond those asked for, where Hypothesis discarded a draw
        if number is not None:
            link.send((number, kind, "?", None))
        try:
            mutation, result = check(kind, data.draw)
        except HypothesisException:
            raise
        except Exception:
            mutation, result = "?", traceback.format_exc(limit=-4)
        if number is not None:
            link.send((number, kind, mutation, result))

    run()


SUBJECTS = {"data": mutate_data, "runs": mutate_runs, "models": mutate_models}


def fuzz(subject: str, cases: int, first: int, seed: int, seconds: float, until: float) -> tuple[Counter, list[dict[str, Any]]]:
    """Counts of (kind, mutation, result), and the failures; no further case after `until` on the monotonic clock."""
    counts, failures, number, stop = Counter(), [], first, first + cases
    while number < stop:
        here, there = multiprocessing.Pipe()
        arguments = (there, number, stop, seed)
        child = multiprocessing.get_context("spawn").Process(target=SUBJECTS[subject], args=arguments, daemon=True)
        child.start()
        there.close()
        current, result, patience = (number, "?", "?"), None, FIRST_SECONDS
        while number < stop:
            ended = f"more than {patience:g} s"
            try:
                if not here.poll(patience):
                    break
                *current, result = here.recv()
            except EOFError:
                child.join()
                ended = f"the process ended with code {child.exitcode}"
                break
            if result is None:
                continue
            patience = seconds
            counts[current[1], current[2], result if result in ("read", "refused") else "failed"] += 1
            if result not in ("read", "refused"):
                failures.append({"case": current[0], "kind": current[1], "mutation": current[2], "error": result})
                print(f"case {current[0]} failed: {result.splitlines()[-1]}", flush=True)
            number = current[0] + 1
            if number % 500 == 0:
                print(f"case {number}, {len(failures)} failures", flush=True)
            if time.monotonic() > until:
                stop = number
        if number < stop:
            counts[current[1], current[2], "failed"] += 1
            failures.append({"case": current[0], "kind": current[1], "mutation": current[2], "error": ended})
            # what Hypothesis draws cannot begin within a block
            number = current[0] + 1 if subject == "data" else (current[0] // BLOCK + 1) * BLOCK
        child.kill()
        child.join()
    return counts, failures


def main() -> int:
    """Run the cases and write the counts and the failures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", choices=SUBJECTS, default="data", help="what is mutated")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60.0, help="longest duration of a case")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no further case after this time")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time; the results do not depend on it")
    parser.add_argument("--json", type=Path, default=None, help="output path; default: in benchmarks/results")
    options = parser.parse_args()
    step = 1 if options.subject == "data" else BLOCK
    edges = [options.first + options.cases * k // options.workers // step * step for k in range(options.workers)]
    edges.append(options.first + options.cases)
    name = f"fuzz_{'readers' if options.subject == 'data' else options.subject}"
    where = environment() | {"h5py": h5py.__version__, "hdf5": h5py.version.hdf5_version}
    until = time.monotonic() + 60 * options.minutes
    counts, failures = Counter(), []
    with ThreadPoolExecutor(options.workers) as pool:
        parts = [pool.submit(fuzz, options.subject, b - a, a, options.seed, options.seconds, until) for a, b in pairwise(edges)]
        for part in parts:
            counts.update(part.result()[0])
            failures += part.result()[1]
    table: dict[str, dict[str, int]] = {}
    for (kind, mutation, result), count in sorted(counts.items()):
        table.setdefault(f"{kind} {mutation}", {})[result] = count
    total = {result: sum(n for key, n in counts.items() if key[2] == result) for result in ("read", "refused", "failed")}
    content = {
        "environment": where,
        "cases": sum(total.values()),
        "first": options.first,
        "seed": options.seed,
        "total": total,
        "by kind and mutation": table,
        "failures": failures,
    }
    print(json.dumps(total))
    for failure in failures[:20]:
        print(failure["case"], failure["kind"], failure["mutation"], failure["error"], sep="\n")
    print(write(name, content, options.json or RESULTS / f"{name}.json"))
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
