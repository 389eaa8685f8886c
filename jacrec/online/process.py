"""The refreshing process: `python -m jacrec.online.process FOLDER PARENT`, started by `jacrec.online.refresh.Refresher`.

It reads the replay in FOLDER while the controller appends to it, and publishes models there. It ends when PARENT, the
process that started it, is gone. It talks through files alone, so neither side can wait for the other.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from jacrec.data.readers.load import load
from jacrec.data.transitions import Transitions
from jacrec.models.io import load_module
from jacrec.online.config import PARTS, RefreshConfig
from jacrec.online.learn import LEAST_ROWS, refresh_part
from jacrec.online.published import (
    ALIVE,
    FOLDER,
    SETTINGS,
    latest_version,
    leave_notice,
    log_refresh,
    publish,
    refreshes,
    version_folder,
)
from jacrec.online.replay import FILE, ReplayReader
from jacrec.training.config import TrainConfig, from_dict
from jacrec.training.folder import read_record
from jacrec.training.streams import seed_of
from jacrec.util import locks


@dataclass(frozen=True)
class Job:
    """What the process is to do."""

    folder: Path
    """of the replay and the published models"""
    run: Path
    """whose models are refreshed"""
    config: RefreshConfig


def read_job(folder: Path) -> Job:
    """The job in `folder`/refresh.json."""
    told = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    told["config"]["parts"] = tuple(told["config"]["parts"])
    return Job(folder, Path(told["run"]), RefreshConfig(**told["config"]))


class ParentGone(Exception):
    """The process that started this one has ended."""


class Life:
    """Signs of life to the parent, and from it."""

    def __init__(self, folder: Path, parent: int):
        self.path, self.parent, self.shown = folder / FOLDER / ALIVE, parent, 0.0
        self.path.touch()

    def __call__(self) -> None:
        """Called often; looks and shows itself twice a second.

        Raises:
            ParentGone: nobody needs this any more.
        """
        now = time.monotonic()
        if now - self.shown > 0.5:
            if os.getppid() != self.parent:
                raise ParentGone
            os.utime(self.path)
            self.shown = now


def serve(job: Job, parent: int) -> None:
    """Refresh whenever it is due, until the parent is gone."""
    c, folder = job.config, job.folder
    config = from_dict(read_record(job.run)["settings"])
    with alone(folder, parent):  # one that outlives its parent for a moment has to be done first
        alive, version, done = Life(folder, parent), latest_version(folder), refreshes(folder)
        models = {
            part: load_module((version_folder(folder, version) if version else job.run) / f"{part}.safetensors")
            for part in PARTS
        }
        offline = offline_data(config, c, lambda sentence: leave_notice(folder, sentence))
        at_last, began = (done[-1]["transitions"] if done else 0), time.monotonic()
        reader = None
        while True:
            alive()
            if reader is None and (folder / FILE).is_file():
                reader = ReplayReader(folder)
            count = 0 if reader is None else reader.look()
            if reader is None or count < 2 * LEAST_ROWS or not c.due(count, at_last, time.monotonic() - began):
                time.sleep(c.poll_seconds)
                continue
            at_last, began = count, time.monotonic()
            replay = reader.transitions(max(0, count - c.window), count)
            line = {"number": len(done) + 1, "transitions": count, "offline": offline is not None, "verdicts": []}
            for part in c.parts:
                seed = seed_of(c.seed, "refresh", count, part)
                models[part], verdict = refresh_part(part, models[part], replay, config, c, seed, offline=offline, alive=alive)
                line["verdicts"].append(asdict(verdict))
                print(f"refresh {line['number']} at {count} transitions: {verdict}", flush=True)
            if any(verdict["accepted"] for verdict in line["verdicts"]):
                version += 1
                publish(folder, version, models, c.keep)
            line |= {"version": version, "seconds": time.monotonic() - began}
            done.append(line)
            log_refresh(folder, line)


def offline_data(config: TrainConfig, c: RefreshConfig, say: Callable[[str], None]) -> tuple[Transitions, Transitions] | None:
    """At most `offline_rows` of the run's training transitions, and a tenth of that of its held-out ones.

    None where the data cannot be had here, which is said; none either where share = 1.
    """
    if c.share == 1.0:
        return None
    try:
        data = load(config.data, env_id=config.env_id, download=False)
        kept, held_out = data.split(config.held_out, seed_of(config.seed, "held out"))
    except (OSError, ValueError) as error:
        sentence = f"no offline data, so share = {c.share:g} does not hold: the replay alone is learned from ({error})"
        print(sentence, flush=True)
        say(sentence)
        return None
    rng = np.random.default_rng(seed_of(c.seed, "offline rows"))

    def some(part: Transitions, rows: int) -> Transitions:
        return part.rows(np.sort(rng.choice(len(part), min(rows, len(part)), replace=False)))

    return some(kept, c.offline_rows), some(held_out, max(LEAST_ROWS, c.offline_rows // 10))


@contextlib.contextmanager
def alone(folder: Path, parent: int) -> Iterator[None]:
    """Wait until no other process refreshes in this folder.

    Raises:
        ParentGone: meanwhile.
    """
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    while (release := locks.acquire(folder / FOLDER / ".lock")) is None:
        if os.getppid() != parent:
            raise ParentGone
        time.sleep(0.1)
    try:
        yield
    finally:
        release()


def main(folder: str, parent: str) -> None:
    """The process's own beginning."""
    torch.set_num_threads(1)
    with contextlib.suppress(ParentGone):
        serve(read_job(Path(folder)), int(parent))


if __name__ == "__main__":
    main(*sys.argv[1:])
