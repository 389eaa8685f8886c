"""Mutate data sets of every kind that the readers know, and check what comes of each.

A case is a kind of data set, a mutation and the seed of its random numbers. It passes if the data are read as a plain loop
reads them ("read"), or if they are refused with a ValueError or an OSError that names the file and the key ("refused").
Anything else fails: another exception, a wrong number, a crash of the process, more than --seconds for a case. Cases run in
child processes with limited memory; a failing case is reproduced by --first N --cases 1.

    python benchmarks/fuzz_readers.py --cases 10000
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from harness import RESULTS, environment, write

from tests.data.readers.mutations import mutations_for, outcome
from tests.data.readers.sources import KINDS, make

MEMORY = 8 << 30
"""bytes of address space of a child: a damaged size must not exhaust the machine"""


def run_cases(link: Connection, first: int, stop: int, seed: int) -> None:
    """Run cases in this process and send (number, description) before and (number, kind, mutation, result) after each."""
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


def fuzz(cases: int, first: int, seed: int, seconds: float) -> tuple[Counter, list[dict[str, Any]]]:
    """Counts of (kind, mutation, result), and the failures."""
    counts, failures, number, stop = Counter(), [], first, first + cases
    while number < stop:
        here, there = multiprocessing.Pipe()
        child = multiprocessing.get_context("spawn").Process(target=run_cases, args=(there, number, stop, seed), daemon=True)
        child.start()
        there.close()
        current, result = (number, "?", "?"), None
        while number < stop:
            ended = f"more than {seconds:g} s"
            try:
                if not here.poll(seconds):
                    break
                *current, result = here.recv()
            except EOFError:
                child.join()
                ended = f"the process ended with code {child.exitcode}"
                break
            if result is None:
                continue
            counts[current[1], current[2], result if result in ("read", "refused") else "failed"] += 1
            if result not in ("read", "refused"):
                failures.append({"case": current[0], "kind": current[1], "mutation": current[2], "error": result})
            number = current[0] + 1
            if number % 500 == 0:
                print(f"case {number}, {len(failures)} failures", flush=True)
        if number < stop:
            counts[current[1], current[2], "failed"] += 1
            failures.append({"case": current[0], "kind": current[1], "mutation": current[2], "error": ended})
            number = current[0] + 1
        child.kill()
        child.join()
    return counts, failures


def main() -> int:
    """Run the cases and write the counts and the failures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60.0, help="longest duration of a case")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time; the results do not depend on it")
    parser.add_argument("--json", type=Path, default=RESULTS / "fuzz_readers.json", help="output path")
    options = parser.parse_args()
    edges = [options.first + options.cases * k // options.workers for k in range(options.workers + 1)]
    counts, failures = Counter(), []
    with ThreadPoolExecutor(options.workers) as pool:
        parts = [pool.submit(fuzz, b - a, a, options.seed, options.seconds) for a, b in pairwise(edges)]
        for part in parts:
            counts.update(part.result()[0])
            failures += part.result()[1]
    table: dict[str, dict[str, int]] = {}
    for (kind, mutation, result), count in sorted(counts.items()):
        table.setdefault(f"{kind} {mutation}", {})[result] = count
    total = {result: sum(n for key, n in counts.items() if key[2] == result) for result in ("read", "refused", "failed")}
    content = {
        "environment": environment() | {"h5py": h5py.__version__, "hdf5": h5py.version.hdf5_version},
        "cases": options.cases,
        "first": options.first,
        "seed": options.seed,
        "total": total,
        "by kind and mutation": table,
        "failures": failures,
    }
    print(json.dumps(total))
    for failure in failures[:20]:
        print(failure["case"], failure["kind"], failure["mutation"], failure["error"], sep="\n")
    print(write("fuzz_readers", content, options.json))
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
