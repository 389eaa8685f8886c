"""The refreshing process: `python -m jacrec.online.process FOLDER PARENT`, started by `jacrec.online.refresh.Refresher`.

It reads the replay buffer in FOLDER while the controller appends to it, publishes models there, and exits when the process
PARENT ends. The two processes communicate only through files, so neither ever waits for the other.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from jacrec.data.readers.load import load
from jacrec.data.transitions import DatasetInfo, Transitions
from jacrec.envs.actions import ActionBox
from jacrec.models.io import load_module
from jacrec.online.config import PARTS, RefreshConfig
from jacrec.online.learn import LEAST_ROWS, refresh_part
from jacrec.online.published import (
    ALIVE,
    FOLDER,
    SETTINGS,
    latest_version,
    log_refresh,
    publish,
    read_refreshes,
    version_folder,
    write_notice,
)
from jacrec.online.replay_buffer import FILE, ReplayReader
from jacrec.training.config import TrainConfig
from jacrec.training.folder import loadable, read_record, recorded_config, recorded_info
from jacrec.training.streams import derive_seed
from jacrec.util import locks


@dataclass(frozen=True)
class RefreshJob:
    """The task of the process."""

    folder: Path
    """folder of the replay buffer and the published models"""
    run: Path
    """the run whose models are refreshed"""
    config: RefreshConfig


def read_job(folder: Path) -> RefreshJob:
    """The job in `folder`/refresh.json."""
    content = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))  # written by this process's parent
    content["config"]["parts"] = tuple(content["config"]["parts"])
    return RefreshJob(folder, Path(content["run"]), RefreshConfig(**content["config"]))


class ParentGone(Exception):
    """The parent process has ended."""


class Heartbeat:
    """Touches a file for the parent to see, and checks that the parent is alive."""

    def __init__(self, folder: Path, parent: int):
        self.path, self.parent, self.last = folder / FOLDER / ALIVE, parent, 0.0
        self.path.touch()

    def __call__(self) -> None:
        """Called frequently; acts at most twice per second.

        Raises:
            ParentGone: the parent process has ended.
        """
        now = time.monotonic()
        if now - self.last > 0.5:
            if os.getppid() != self.parent:
                raise ParentGone
            os.utime(self.path)
            self.last = now


def serve(job: RefreshJob, parent: int) -> None:
    """Refresh the models whenever it is due, until the parent process ends."""
    c, folder = job.config, job.folder
    record = read_record(job.run)
    config = recorded_config(job.run, record)
    with exclusive(folder, parent):  # an earlier process may briefly outlive its parent
        alive, version, done = Heartbeat(folder, parent), latest_version(folder), read_refreshes(folder)
        models = {
            part: load_module((version_folder(folder, version) if version else job.run) / f"{part}.safetensors")
            for part in PARTS
        }
        say = partial(write_notice, folder)
        offline = offline_data(config, c, say, recorded_info(record), scaled="action_low" in record["data"])
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
                seed = derive_seed(c.seed, "refresh", count, part)
                models[part], verdict = refresh_part(part, models[part], replay, config, c, seed, offline=offline, alive=alive)
                line["verdicts"].append(asdict(verdict))
                print(f"refresh {line['number']} at {count} transitions: {verdict}", flush=True)
            if any(verdict["accepted"] for verdict in line["verdicts"]):
                version += 1
                publish(folder, version, models, c.keep)
            line |= {"version": version, "seconds": time.monotonic() - began}
            done.append(line)
            log_refresh(folder, line)


def offline_data(
    config: TrainConfig, c: RefreshConfig, say: Callable[[str], None], info: DatasetInfo, *, scaled: bool = True
) -> tuple[Transitions, Transitions] | None:
    """At most `offline_rows` of the run's training transitions, and a tenth of that number of its held-out ones.

    None if share = 1, or if the data are not available, which is reported through `say`.

    Args:
        info: the metadata of the run's data.
        scaled: whether the run's actions were mapped to [-1, 1] from the bounds of its data; earlier versions did not.
    """
    if c.share == 1.0:
        return None
    try:
        if not loadable(config, info):
            raise ValueError(f"expected data that can be loaded, got {info.name!r}, given to train(..., data=...)")
        bounds = {"action_low": config.action_low, "action_high": config.action_high}
        data = load(config.data, env_id=config.env_id, download=False, repair=config.repair, mapping=config.mapping, **bounds)
        if not scaled and not (data.info.action_box or ActionBox()).is_unit:
            raise ValueError(f"{config.data}: expected actions as the run was trained on, got {data.info.action_box} scaled")
        kept, held_out = data.split(config.held_out, derive_seed(config.seed, "held out"))
    except (OSError, ValueError) as error:
        sentence = (
            f"no offline data, so share = {c.share:g} is ignored and only the replay buffer is used ({error}); "
            "make them available, or choose --online.share 1 (RefreshConfig(share=1.0)) to mean that"
        )
        print(sentence, flush=True)
        say(sentence)
        return None
    rng = np.random.default_rng(derive_seed(c.seed, "offline rows"))

    def some(part: Transitions, rows: int) -> Transitions:
        return part.rows(np.sort(rng.choice(len(part), min(rows, len(part)), replace=False)))

    return some(kept, c.offline_rows), some(held_out, max(LEAST_ROWS, c.offline_rows // 10))


@contextlib.contextmanager
def exclusive(folder: Path, parent: int) -> Iterator[None]:
    """Wait until no other process refreshes the models in this folder, and keep others out.

    Raises:
        ParentGone: the parent process has ended while waiting.
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
    """Entry point of the process."""
    torch.set_num_threads(1)
    with contextlib.suppress(ParentGone):
        serve(read_job(Path(folder)), int(parent))


if __name__ == "__main__":
    main(*sys.argv[1:])
