"""`jacrec data get`."""

import sys
from functools import partial

from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from tyro.conf import Positional

from jacrec.data.download import get
from jacrec.data.fetch import DownloadError


def fetch(names: Positional[tuple[str, ...]], *, overwrite: bool = False) -> int:
    """Fetch data sets: D4RL's by name, Minari's by id. What is here is checked; what was interrupted goes on.

    Args:
        names: of D4RL's 24, e.g. hopper-medium-replay-v2 or antmaze-umaze-v2, or Minari ids, e.g. D4RL/antmaze/umaze-v1
        overwrite: fetch again what is here
    """
    if not names:
        raise ValueError("data get: expected names of data sets, got none; e.g. `jacrec data get hopper-medium-replay-v2`")
    failed = []
    for name in names:
        try:
            with Progress(
                TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
            ) as bar:
                task = bar.add_task(name, total=None)
                got = get(name, overwrite=overwrite, progress=partial(_show, bar, task))
        except DownloadError as error:
            failed.append(name)
            print(f"jacrec: {error}", file=sys.stderr)
            continue
        checked = "fetched" if got.fetched else "was here and is unchanged"
        digest = f", SHA-256 {got.sha256}" if got.sha256 else ""
        print(f"{name}: {checked}, {got.size / 1e6:.1f} MB{digest}, at {got.path}\nnext: jacrec train {name}")
    if failed:
        raise DownloadError(f"{len(failed)} of {len(names)} not fetched: {', '.join(failed)}")
    return 0


def _show(bar: Progress, task: TaskID, have: int, total: int | None) -> None:
    bar.update(task, completed=have, total=total)
