"""A part of benchmarks/gpu.py, row by row: each row is written when it is measured, and an error ends that row alone.

    python benchmarks/gpu_rows.py PART --out FOLDER --seconds 60 [--rehearse]

The file FOLDER/PART.jsonl has a line when a row begins and one when it ends. A part that is started again goes on behind the
rows that it holds: those of the same commit, machine and versions. A row that ends the process (a crash, a hang that the
watchdog ends, a CUDA error after which the context is lost) is recorded as failed at the next start.
"""

import argparse
import faulthandler
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

BEGUN = time.monotonic()
DONE, FAILED, AGAIN = 0, 3, 75
"""exit statuses: all rows measured, some failed, start again for the remaining rows"""
LEAST_SECONDS = 3.0
"""minimum remaining time for starting a row"""
LOST = ("CUDA error", "Triton Error [CUDA]", "cuBLAS error", "CUBLAS_STATUS")
"""messages of errors after which no call of this process can be trusted"""

Row = tuple[str, Callable[[], object]]
"""name and measurement; its result must be JSON"""


class Record:
    """The lines of a part's file that belong to this identity (commit, machine, versions, scale)."""

    def __init__(self, path: Path, identity: dict, run: str):
        self.path, self.run = path, run
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.lines(path)
        if not lines or lines[0].get("identity") != identity:
            path.write_text(json.dumps({"identity": identity}) + "\n", encoding="utf-8")
            lines = []
        self.results = {x["row"]: x["result"] for x in lines if "result" in x}
        ended = {x["row"] for x in lines if x.get("run") == run and ("error" in x or "result" in x)}
        self.failed = {x["row"] for x in lines if x.get("run") == run and "error" in x} - self.results.keys()
        for row in [x["row"] for x in lines if x.get("run") == run and x.get("begun") and x["row"] not in ended]:
            self.add(row, error="the process ended during this row: a crash, or longer than its limit")
            self.failed.add(row)

    @staticmethod
    def lines(path: Path) -> list[dict]:
        """All whole lines; a process that was killed may have left half a line."""
        if not path.exists():
            return []
        found = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return found

    def add(self, row: str, **what: object) -> None:
        """Write a line, on the disk before this returns."""
        text = json.dumps({"row": row, "run": self.run, **what})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())


def measure(rows: list[Row], record: Record, seconds: float, limit: float | None = None) -> int:
    """Measure the rows that the record lacks; the exit status.

    Args:
        seconds: for all of them; rows for which no time is left are not begun.
        limit: seconds after which a row ends the process.
    """
    until = time.monotonic() + seconds
    for name, call in rows:
        if name in record.results or name in record.failed:
            continue
        left = until - time.monotonic()
        if left < LEAST_SECONDS:
            record.add(name, skipped="no time was left")
            print(f"   {name}: no time was left", flush=True)
            continue
        record.add(name, begun=True)
        if limit is not None:
            faulthandler.dump_traceback_later(min(limit, left), exit=True)
        begun = time.monotonic()
        try:
            result = call()
        except (Exception, SystemExit) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            record.add(name, error=reason, seconds=round(time.monotonic() - begun, 2))
            record.failed.add(name)
            print(f"   {name}: {reason}", flush=True)
            if any(text in reason for text in LOST):
                return AGAIN
        else:
            record.add(name, result=result, seconds=round(time.monotonic() - begun, 2))
            record.results[name] = result
            print(f"   {name}: {time.monotonic() - begun:.1f} s", flush=True)
        finally:
            faulthandler.cancel_dump_traceback_later()
    return FAILED if record.failed else DONE


def main(arguments: list[str] | None = None) -> int:
    """Measure one part; the exit status."""
    import gpu_parts
    from harness import environment

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=gpu_parts.PARTS)
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--seconds", type=float, default=60.0, help="for the whole part")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds after which a row ends the process")
    parser.add_argument("--run", default=str(time.time_ns()), help="rows that failed in a run of this name are not tried again")
    parser.add_argument("--rehearse", action="store_true", help="small sizes on the CPU, kernels interpreted")
    options = parser.parse_args(arguments)
    scale = gpu_parts.REHEARSAL if options.rehearse else gpu_parts.FULL
    where = environment(scale.device)
    identity = {k: where.get(k) for k in ("machine", "commit", "torch", "triton", "cuda")} | {"rehearsal": options.rehearse}
    record = Record(options.out / f"{options.part}.jsonl", identity, options.run)
    left = options.seconds - (time.monotonic() - BEGUN)  # importing torch may take ten seconds
    return measure(gpu_parts.PARTS[options.part](scale), record, left, options.limit)


if __name__ == "__main__":
    sys.exit(main())
