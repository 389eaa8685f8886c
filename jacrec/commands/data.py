"""`jacrec data make | get | list | show`."""

from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table
from tyro.conf import Positional

from jacrec.commands import data_get
from jacrec.data.behaviour.make import ANTMAZE_KINDS, KINDS, default_id, make_dataset
from jacrec.data.catalog import Spread, describe, list_datasets
from jacrec.data.d4rl_files import D4RL_FILES, local_d4rl
from jacrec.data.readers.minari import dataset_path

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


def make(
    env: Positional[str],
    kind: Positional[Kind],
    *,
    steps: int = 100_000,
    seed: int = 0,
    id: Annotated[str | None, tyro.conf.arg(name="id")] = None,
    physics: Literal["d4rl", "native"] = "d4rl",
    overwrite: bool = False,
) -> int:
    """Make an embedded data set: real MuJoCo under our own behaviour, written as a Minari data set.

    Args:
        env: hopper, halfcheetah, antmaze, pointmaze-umaze, pointmaze-medium, pointmaze-large, or (kind random) any gymnasium id
        kind: which behaviour; point mazes have random and expert, antmaze has umaze to large-diverse
        steps: environment steps
        seed: of resets and action noise
        id: Minari id, jacrec/ENV-KIND-v0 unless told
        physics: contacts as in D4RL's data, or as this MuJoCo has them
        overwrite: replace a data set of the same id
    """
    columns = (TextColumn("collecting"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("collecting", total=steps)
        made = make_dataset(
            env,
            kind,
            steps=steps,
            seed=seed,
            overwrite=overwrite,
            dataset_id=id,
            physics=physics,
            progress=lambda done: progress.update(task, completed=done),
        )
    print(f"{made.dataset_id}: {made.episodes} episodes, {made.steps} steps in {made.seconds:.1f} s, at {made.path}")
    if made.rewarded is not None:
        print(f"reward: {made.rewarded.steps} steps in {made.rewarded.episodes} of {made.rewarded.of} episodes")
    return 0


def list_() -> int:
    """The data sets on this machine: Minari's, and the files of D4RL that `jacrec train` finds by name."""
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
    Console().print(table)
    return 0


def show(source: Positional[str], *, env_id: str | None = None) -> int:
    """What is in a data set.

    Args:
        source: Minari id, D4RL's name of one of its 24, or path of a D4RL-layout HDF5 file
        env_id: gymnasium id of its environment, where the data do not say it
    """
    x = describe(source, env_id=env_id)
    table = Table(show_header=False, title=x.info.name)
    rows = {
        "environment": x.info.env_id or "not named",
        "source": x.info.source,
        "episodes": str(x.episodes),
        "transitions": str(x.steps),
        "state, action": f"{x.state_dim}, {x.action_dim}",
        "return": _spread(x.returns),
        "score (%)": "no reference" if x.scores is None else _spread(x.scores),
        "episode length": _spread(x.lengths),
        "terminated": f"{x.termination_share:.0%} of the episodes",
        "physics": ", ".join(f"{k} {v}" for k, v in x.info.physics.items()) or "not recorded",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)
    return 0


def _spread(x: Spread) -> str:
    return f"{x.mean:.1f} ± {x.std:.1f}, {x.min:.1f} to {x.max:.1f}"


def run(args: list[str]) -> int:
    """The verb."""
    verbs = {"make": make, "get": data_get.fetch, "list": list_, "show": show}
    return tyro.extras.subcommand_cli_from_dict(verbs, prog="jacrec data", args=args)
