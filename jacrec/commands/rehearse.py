"""`jacrec rehearse RUN`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
import yaml
from rich.console import Console
from rich.progress import Progress
from tyro.conf import Positional

from jacrec.control.controller import MPCConfig
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.rehearsal import CANDIDATES, FILE, RehearsalConfig, make_rehearsal
from jacrec.evaluation.rehearsal_tables import choice_sentence, table
from jacrec.studies.parse import build_mpc, expect_mapping
from jacrec.training.run import load_run


@dataclass(frozen=True)
class Rehearse:
    """Let ways to think play imagined episodes in the run's world model: the surest gain may act, or the base policy does.

    No step is taken in the real environment; only its reset states are asked for. `jacrec eval RUN --rehearse` then plays with
    what was chosen.
    """

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """the run's folder"""
    candidates: tuple[str, ...] = tuple(CANDIDATES)
    """who is rehearsed: candidates that come with jacrec (h3, h3-restart, h1-restart, h8), or YAML files of others:
    {name: {controller settings}}"""
    others: tuple[Path, ...] = ()
    """further runs on the same data (other seeds), in whose world models is rehearsed too: what does not gain in all of them
    does not act"""
    out: Path | None = None
    """where rehearsal.json goes, the run's folder unless told"""
    again: bool = False
    """discard an earlier rehearsal there"""
    env_id: str | None = None
    """gymnasium id of the environment, where the run does not say it"""
    physics: Literal["d4rl", "native"] = "d4rl"
    """as in an evaluation; here it only matters for reset states"""
    threads: int = 1
    """threads of torch"""
    config: Annotated[RehearsalConfig, tyro.conf.arg(name="")] = field(default_factory=RehearsalConfig)


def run(args: list[str]) -> int:
    """The verb."""
    chosen = tyro.cli(Rehearse, args=args, prog="jacrec rehearse")
    candidates = named_candidates(chosen.candidates)
    trained, folder = load_run(chosen.run), chosen.out or chosen.run
    play = PlayConfig(env_id=chosen.env_id, physics=chosen.physics, threads=chosen.threads)
    others = {str(path): load_run(path) for path in chosen.others}
    with Progress(transient=True) as progress:
        task = progress.add_task("rehearsal", total=1.0)
        record = make_rehearsal(
            trained,
            folder,
            candidates,
            chosen.config,
            play,
            others=others,
            again=chosen.again,
            progress=lambda x: progress.update(task, completed=x),
        )
    Console().print(table(record))
    print(f"{choice_sentence(record)}\nrehearsal: {folder / FILE}")
    if not chosen.others:
        print(
            "one world model alone can be wrong where its own controller likes to go: train further seeds (jacrec train DATA "
            "--seeds ...) and name their runs with --others"
        )
    print(f"next: jacrec eval {chosen.run} --rehearse" + (f" --out {folder}" if chosen.out else ""))
    return 0


def named_candidates(names: tuple[str, ...]) -> dict[str, MPCConfig]:
    """Candidates by name, of those that come with jacrec and of YAML files.

    Raises:
        ValueError: neither a candidate nor a file, a file that is no mapping of controllers, or a name given twice.
    """
    found: dict[str, MPCConfig] = {}
    for name in names:
        if name in CANDIDATES:
            more = {name: CANDIDATES[name]}
        elif Path(name).suffix in (".yaml", ".yml") and Path(name).is_file():
            try:
                content = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
            except yaml.YAMLError as error:
                raise ValueError(f"{name}: expected YAML, cannot read it: {error}") from None
            more = {who: build_mpc(own, f"{name}: {who}") for who, own in expect_mapping(content, name).items()}
        else:
            raise ValueError(
                f"candidates: expected some of {', '.join(CANDIDATES)} or a YAML file {{name: {{settings}}}}, got {name!r}"
            )
        twice = sorted(found.keys() & more.keys())
        if twice:
            raise ValueError(f"candidates: expected each name once, got {', '.join(twice)} twice")
        found |= more
    return found
