"""Time and memory of reading a million transitions: D4RL's two layouts, a Minari set, and arrays.

Uses synthetic files of D4RL's sizes and compression: locomotion as Walker2d (d = 17, m = 6, with next_observations), AntMaze
(d = 29, m = 8, without), both float32 with infos that the reader must skip, and a Minari set of a thousand float64 episodes.
States are random walks, which gzip compresses about as well as real states.

Each reader runs in its own process. `seconds` is the wall time of a first call, after imports. `peak` is the growth of the
process's peak resident set (VmHWM, reset before the call) divided by the size of the returned arrays; 1 means that nothing else
is allocated. `for_td`, which selects the rows for a TD critic, is measured on the data just read: 1 means a plain copy.

`python benchmarks/readers.py` prints the table and writes benchmarks/results/readers_<device>.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from harness import Others, as_usual, environment, slug, write
from rich.console import Console
from rich.table import Column, Table

READERS = ("locomotion", "antmaze", "minari", "arrays")
MIB = 2**20


def walk(n: int, d: int, length: int, seed: int = 0) -> np.ndarray:
    """(n, d) float32 random walks, restarted every `length` rows."""
    steps = 0.1 * np.random.default_rng(seed).standard_normal((n, d), np.float32)
    for a in range(0, n, length):
        np.cumsum(steps[a : a + length], axis=0, out=steps[a : a + length])
    return steps


def make(reader: str, folder: Path, rows: int) -> None:
    """Make the reader's file or data set in `folder`."""
    rng = np.random.default_rng(1)
    if reader == "minari":
        from jacrec.data.behaviour.collect import Episode
        from jacrec.data.readers.minari import write_minari
        from jacrec.envs.physics import make_env

        env, length = make_env("Walker2d-v4"), 1000
        episodes = [
            Episode(
                walk(length + 1, 17, length + 1, k).astype(np.float64),
                rng.uniform(-1, 1, (length, 6)).astype(np.float32),
                rng.standard_normal(length),
                False,
            )
            for k in range(rows // length)
        ]
        write_minari("bench/walker2d-v0", episodes, env=env.unwrapped, metadata={})
        return
    maze = reader == "antmaze"
    d, m, length = (29, 8, 1001) if maze else (17, 6, 1000)
    states = walk(rows, d, length)
    content = {
        "observations": states,
        "actions": rng.uniform(-1, 1, (rows, m)).astype(np.float32),
        "rewards": rng.standard_normal(rows).astype(np.float32),
        "timeouts": np.arange(rows) % length == length - 1,
        "terminals": np.zeros(rows, np.float32 if maze else bool),
        "infos/qpos": states[:, :15] if maze else states[:, :9],
        "infos/qvel": states[:, 15:] if maze else states[:, 8:],
    }
    if maze:
        content["infos/goal"] = np.repeat(rng.standard_normal((rows // length + 1, 2)), length, 0)[:rows].astype(np.float32)
    else:
        content["next_observations"] = np.concatenate((states[1:], states[-1:]))
    if reader == "arrays":
        np.savez(folder / "arrays.npz", **content)
        return
    with h5py.File(folder / file_of(reader), "w") as file:
        for key, value in content.items():
            file.create_dataset(key, data=value, compression="gzip")


def file_of(reader: str) -> str:
    """D4RL's name of such a file."""
    if reader == "antmaze":
        return "Ant_maze_big-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5"
    return "walker2d_medium-v2.hdf5"


def measure(reader: str, folder: Path) -> dict[str, Any]:
    """Measure a reader in this process."""
    from jacrec.data import from_arrays, load

    if reader == "arrays":
        with np.load(folder / "arrays.npz") as file:
            x = {key: file[key] for key in ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")}
        result, read = watched(
            lambda: from_arrays(
                x["observations"],
                x["actions"],
                x["rewards"],
                x["terminals"],
                ends=x["timeouts"],
                next_observations=x["next_observations"],
                env_id="Walker2d-v4",
            )
        )
    else:
        source = "bench/walker2d-v0" if reader == "minari" else folder / file_of(reader)
        result, read = watched(lambda: load(source, download=False))
    kept, usable = watched(result.for_td)
    return {
        "transitions": len(result),
        "td_rows": len(kept),
        "arrays_mib": round(size(result) / MIB, 1),
        "read": read,
        "for_td": usable,
    }


def watched(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result of a call, its duration, and its peak resident memory relative to the size of the result."""
    Path("/proc/self/clear_refs").write_text("5")
    before, started = resident("VmRSS"), time.perf_counter()
    result = call()
    seconds, peak = time.perf_counter() - started, resident("VmHWM") - before
    return result, {"seconds": round(seconds, 2), "peak": round(peak / size(result), 2)}


def resident(key: str) -> int:
    """Memory of this process in bytes, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) * 1024


def size(data: Any) -> int:
    """Size of the transitions' arrays in bytes."""
    own = sum(value.nbytes for value in vars(data).values() if isinstance(value, np.ndarray))
    return own + (size(data.blind_ends) if data.blind_ends is not None else 0)


def main() -> None:
    """Make the data, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="transitions per reader")
    parser.add_argument("--json", type=Path, help="output path")
    parser.add_argument("--only", choices=READERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.folder)))
        return
    result: dict[str, Any] = {"environment": environment(), "rows": options.rows, "readers": {}}
    for reader in READERS:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MINARI_DATASETS_PATH"] = folder
            make(reader, Path(folder), options.rows)
            own = [sys.executable, __file__, "--only", reader, "--folder", folder]
            others = Others()
            done = subprocess.run(own, check=True, capture_output=True, text=True).stdout
            result["readers"][reader] = {**json.loads(done.splitlines()[-1]), "others": round(others.share(), 2)}
    table = Table(*(Column(x, no_wrap=True) for x in ("reader", "rows", "MiB", "read s", "peak", "for_td s", "peak")))
    for reader, x in result["readers"].items():
        table.add_row(
            reader,
            f"{x['transitions']:,}",
            f"{x['arrays_mib']:.0f}",
            f"{x['read']['seconds']:.2f}",
            f"{x['read']['peak']:.2f}",
            f"{x['for_td']['seconds']:.2f}",
            f"{x['for_td']['peak']:.2f}",
        )
    Console().print(table)
    if options.json or as_usual(parser, options):
        print(write(f"readers_{slug()}", result, options.json))


if __name__ == "__main__":
    main()
