"""`jacrec rehearse RUN`: choose controller settings by imagined episodes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.progress import Progress
from tyro.conf import Positional

from jacrec.control.controller import MPCConfig
from jacrec.data.yaml_file import read_yaml
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.markdown import terminal
from jacrec.evaluation.rehearsal import CANDIDATES, FILE, RehearsalConfig, make_rehearsal
from jacrec.evaluation.rehearsal_tables import choice_sentence, table
from jacrec.studies.parse import build_mpc, expect_mapping
from jacrec.training.folder import loadable
from jacrec.training.run import load_run
from jacrec.util.files import user_path


@dataclass(frozen=True)
class Rehearse:
    """Evaluate candidate settings in imagined episodes in the run's world model and choose the one with the surest gain.

    If none gains over the base policy, the base policy is chosen. The real environment only provides reset states; no step is
    taken in it. `jacrec eval RUN --rehearse` then uses the choice.
    """

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """the run's folder"""
    candidates: tuple[str, ...] = tuple(CANDIDATES)
    """built-in candidates (h3, h3-large, h5: steps in units of the critic's values), or YAML files of others: {name: {controller settings}}"""
    others: tuple[Path, ...] = ()
    """further runs on the same data (other seeds): a candidate must gain in the world models of all of them"""
    out: Path | None = None
    """folder of rehearsal.json; None: the run's"""
    again: bool = False
    """discard an earlier rehearsal in that folder"""
    env_id: str | None = None
    """gymnasium id of the environment; None: the run's"""
    physics: Literal["d4rl", "native"] = "d4rl"
    """contacts as in `jacrec eval`; affects only the reset states"""
    threads: int = 1
    """torch threads"""
    config: Annotated[RehearsalConfig, tyro.conf.arg(name="")] = field(default_factory=RehearsalConfig)


COMMAND = Rehearse


def run(args: list[str]) -> int:
    """Run the verb."""
    chosen = tyro.cli(COMMAND, args=args, prog="jacrec rehearse")
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
    terminal().print(table(record))
    print(f"{choice_sentence(record)}\nrehearsal: {folder / FILE}")
    if not chosen.others:
        how = "jacrec train DATA --seeds ..." if loadable(trained.config, trained.info) else "jacrec.training.train_seeds"
        print(
            "a single world model can be wrong in exactly the states that its controller seeks: train further seeds "
            f"({how}) and pass their runs with --others"
        )
    print(f"next: jacrec eval {chosen.run} --rehearse" + (f" --out {folder}" if chosen.out else ""))
    return 0


def named_candidates(names: tuple[str, ...]) -> dict[str, MPCConfig]:
    """Candidates by name: built-in ones and those in YAML files.

    Raises:
        ValueError: neither a built-in candidate nor a file, a file that is not a mapping of controllers, or a repeated name.
    """
    found: dict[str, MPCConfig] = {}
    for name in names:
        if name in CANDIDATES:
            more = {name: CANDIDATES[name]}
        elif (file := user_path(name)).suffix in (".yaml", ".yml") and file.is_file():
            content = read_yaml(file, "correct it")
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
