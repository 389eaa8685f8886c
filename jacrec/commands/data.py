"""`jacrec data make | get | list | show`: offline data sets."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table
from tyro.conf import Positional

from jacrec.data.behaviour.make import ANTMAZE_KINDS, KINDS, default_id, make_dataset
from jacrec.data.catalog import Spread, list_datasets, summarise
from jacrec.data.d4rl_files import D4RL_FILES, local_d4rl
from jacrec.data.download import get
from jacrec.data.fetch import DownloadError
from jacrec.data.readers.load import load
from jacrec.data.readers.minari import dataset_path
from jacrec.evaluation.data_plots import dataset_plot
from jacrec.evaluation.markdown import terminal

Kind = Literal[
    "random",
    "medium",
    "medium-replay",
    "full-replay",
    "medium-expert",
    "expert",
    "umaze",
    "umaze-diverse",
    "medium-play",
    "medium-diverse",
    "large-play",
    "large-diverse",
]
assert {*KINDS, *ANTMAZE_KINDS} == set(Kind.__args__)
UNAUTHENTICATED = (
    "unauthenticated: D4RL serves this file by plain http and publishes no checksum; the SHA-256 above is that of the first "
    "copy seen here, and later downloads and checks are compared with it"
)


def make(
    env: Positional[str],
    kind: Positional[Kind],
    *,
    steps: int = 100_000,
    seed: int = 0,
    behaviour: Literal["linear", "sac"] | None = None,
    id: Annotated[str | None, tyro.conf.arg(name="id")] = None,
    physics: Literal["d4rl", "native"] = "d4rl",
    max_episode_steps: int | None = None,
    overwrite: bool = False,
) -> int:
    """Make a data set: built-in behaviour in MuJoCo, written as a Minari data set.

    Args:
        env: hopper, halfcheetah, walker2d, antmaze, pointmaze-umaze, pointmaze-medium, pointmaze-large, or any gymnasium id (kind random)
        kind: the behaviour; random and expert for point mazes, umaze to large-diverse for antmaze
        steps: environment steps
        seed: seed of resets and action noise
        behaviour: linear (hopper, halfcheetah: policies of a random search) or sac (hopper, halfcheetah, walker2d: stochastic
            policies of a soft actor-critic training, as in D4RL's data); None: linear, and sac for walker2d
        id: Minari id; None: jacrec/ENV-KIND-v0, jacrec/ENV-KIND-sac-v0
        physics: d4rl: contacts as when D4RL's data were recorded; native: this MuJoCo's own
        max_episode_steps: time limit; None: the environment's own; required if it has none
        overwrite: replace a data set with the same id
    """
    columns = (TextColumn("collecting"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with _shown_once_begun(*columns) as progress:
        made = make_dataset(
            env,
            kind,
            steps=steps,
            seed=seed,
            overwrite=overwrite,
            dataset_id=id,
            behaviour=behaviour,
            physics=physics,
            max_episode_steps=max_episode_steps,
            progress=lambda done: progress(done, steps),
        )
    print(f"{made.dataset_id}: {made.episodes} episodes, {made.steps} steps in {made.seconds:.1f} s, at {made.path}")
    if made.rewarded is not None:
        print(f"reward: {made.rewarded.steps} steps in {made.rewarded.episodes} of {made.rewarded.of} episodes")
    return 0


def fetch(names: Positional[tuple[str, ...]], *, overwrite: bool = False) -> int:
    """Download data sets: D4RL's and OGBench's by name, Minari's by id. Files that exist are verified; interrupted downloads are resumed.

    D4RL's files come by plain http without published checksums: the SHA-256 of the first download is recorded beside the file,
    and later downloads have to match it.

    Args:
        names: D4RL names, e.g. hopper-medium-replay-v2 or antmaze-umaze-v2, Minari ids, e.g. D4RL/antmaze/umaze-v1, or
            single tasks of OGBench, e.g. cube-single-play-singletask-v0
        overwrite: download again what exists
    """
    if not names:
        raise ValueError("data get: expected names of data sets, got none; e.g. `jacrec data get hopper-medium-replay-v2`")
    failed = []
    for name in names:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        try:
            with _shown_once_begun(*columns, title=name) as progress:
                got = get(name, overwrite=overwrite, progress=progress)
        except DownloadError as error:
            failed.append(name)
            print(f"jacrec: {error}", file=sys.stderr)
            continue
        checked = "downloaded" if got.fetched else "already here and unchanged"
        digest = f", SHA-256 {got.sha256}" if got.sha256 else ""
        print(f"{name}: {checked}, {got.size / 1e6:.1f} MB{digest}, at {got.path}")
        if not got.authenticated:
            print(UNAUTHENTICATED)
        print(f"next: jacrec train {name}")
    if failed:
        raise DownloadError(f"{len(failed)} of {len(names)} not downloaded: {', '.join(failed)}")
    return 0


@contextmanager
def _shown_once_begun(*columns: ProgressColumn, title: str = "") -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar as a function of (done, total); what fails before its first call shows none."""
    bar = Progress(*columns)
    task = bar.add_task(title, start=False)

    def show(done: int, total: int | None) -> None:
        bar.start()
        bar.start_task(task)
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


def list_() -> int:
    """List the data sets on this machine: Minari's, and D4RL's files that `jacrec train` finds by name."""
    found, files = list_datasets(), local_d4rl()
    if not found and not files:
        root = dataset_path(default_id("hopper", "medium")).parents[1]
        print(f"no data sets under {root}; make one with `jacrec data make hopper medium-replay`")
        return 0
    table = Table(Column("id", overflow="fold"), Column("environment", overflow="fold"), "episodes", "steps", "MB")
    for x in found:
        table.add_row(x.dataset_id, x.env_id or "?", str(x.episodes), str(x.steps), f"{x.megabytes:.1f}")
    for name, path in files.items():
        table.add_row(name, D4RL_FILES[name].env_id, "", "", f"{path.stat().st_size / 1e6:.1f}")
    terminal().print(table)
    return 0


def show(
    source: Positional[str],
    *,
    env_id: str | None = None,
    action_low: tuple[float, ...] | None = None,
    action_high: tuple[float, ...] | None = None,
    repair: bool = False,
    mapping: str | None = None,
    plot: Path | None = None,
) -> int:
    """Describe a data set.

    Args:
        source: name of a D4RL data set or of a single task of OGBench, Minari id, or path of an HDF5 file in D4RL's layout
        env_id: gymnasium id of the environment; None: the one recorded in the data
        action_low: lower bounds of the actions, one number per component or one for all; None: those recorded, else -1
        action_high: upper bounds, likewise
        repair: skip empty episodes, drop incomplete last steps, clip actions slightly out of bounds; say what was done
        mapping: YAML file, or neorl2 or lerobot: which arrays of a .npz or HDF5 file, or columns of .parquet files, are what
        plot: draw returns, lengths and ends of the episodes, rewards and actions into this file (.png, .pdf, .svg)
    """
    bounds = {"action_low": action_low, "action_high": action_high}
    data = load(source, env_id=env_id, download=False, repair=repair, mapping=mapping, **bounds)
    x = summarise(data)
    table = Table(show_header=False, title=x.info.name)
    rows = {
        "environment": x.info.env_id or "not recorded",
        "source": x.info.source,
        "episodes": str(x.episodes),
        "transitions": str(x.steps),
        "to measure errors on": "a share of these (held_out)" if x.validation is None else f"{x.validation} more (-val.npz)",
        "state, action": f"{x.state_dim}, {x.action_dim}",
        "action bounds": str(x.info.action_box or "not recorded; [-1, 1] stands for the environment's"),
        "return": _spread(x.returns),
        "score (%)": "no reference" if x.scores is None else _spread(x.scores),
        "episode length": _spread(x.lengths),
        "terminated": f"{x.termination_share:.0%} of the episodes",
        "physics": ", ".join(f"{k} {v}" for k, v in x.info.physics.items()) or "not recorded",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    terminal().print(table)
    if plot is not None:
        dataset_plot(data, plot)
        print(f"plot: {plot}")
    return 0


def _spread(x: Spread) -> str:
    return f"{x.mean:.1f} ± {x.std:.1f}, {x.min:.1f} to {x.max:.1f}"


COMMAND = {"make": make, "get": fetch, "list": list_, "show": show}


def run(args: list[str]) -> int:
    """Run the verb."""
    return tyro.extras.subcommand_cli_from_dict(COMMAND, prog="jacrec data", args=args)
