"""`jacrec tune RUN`: choose controller settings by racing episodes in the environment."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from tyro.conf import Positional

from jacrec.commands.rehearse import named_candidates
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.markdown import terminal_table
from jacrec.evaluation.results import interval
from jacrec.evaluation.statistics import Estimate
from jacrec.evaluation.tuning import BASE, CHOICE, TuneConfig, default_families, tune
from jacrec.training.run import load_run


@dataclass(frozen=True)
class Tune:
    """Race candidate settings of mpc and h0 in real episodes, on seeds apart from the evaluation's, against the base policy.

    A candidate is chosen only if its gain on seeds that did not select it is clear; otherwise the base policy plays. Finished
    rounds are kept: an interrupted race is resumed. `jacrec eval RUN --tuned` then plays the choices.
    """

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """the run's folder"""
    candidates: tuple[Path, ...] = ()
    """YAML files of candidates: {name: {controller settings}}; those with horizon 0 race as h0. Without any, for either: twelve
    around a scale-free step"""
    out: Path | None = None
    """folder of tuning.json and tuned.yaml; None: the run's"""
    again: bool = False
    """discard an earlier race in that folder"""
    env_id: str | None = None
    """gymnasium id of the environment; None: the run's"""
    physics: Literal["d4rl", "native"] = "d4rl"
    """contacts, as in `jacrec eval`"""
    max_episode_steps: int | None = None
    """time limit; None: the environment's own; required if it has none"""
    action_bounds: Literal["env", "data"] | None = None
    """what the policy's actions in [-1, 1] stand for, as in `jacrec eval`"""
    threads: int = 1
    """torch threads"""
    config: Annotated[TuneConfig, tyro.conf.arg(name="")] = field(default_factory=TuneConfig)


COMMAND = Tune


def run(args: list[str]) -> int:
    """Run the verb."""
    chosen = tyro.cli(COMMAND, args=args, prog="jacrec tune")
    trained, folder = load_run(chosen.run), chosen.out or chosen.run
    families: dict[str, Any] = default_families()
    if chosen.candidates:
        named = named_candidates(tuple(map(str, chosen.candidates)))
        families["mpc"] = {name: own for name, own in named.items() if own.horizon}
        families["h0"] = {name: own for name, own in named.items() if not own.horizon} or families["h0"]
    play = PlayConfig(
        env_id=chosen.env_id,
        physics=chosen.physics,
        max_episode_steps=chosen.max_episode_steps,
        action_bounds=chosen.action_bounds,
        threads=chosen.threads,
    )
    record = tune(trained, folder, families, chosen.config, play, again=chosen.again, progress=_show)
    rows = []
    for family, own in record["choice"].items():
        shown = f"{interval(Estimate(**own['gain']), signed=True)} ({own['gain']['n']})"
        rows.append([family, own["name"], own["last"], shown, str(own["episodes"])])
    head = ("", "choice", "last candidate", f"its gain in {record['unit']}, fresh seeds (episodes)", "episodes")
    Console().print(terminal_table(head, rows, title=f"{record['environment']['id']}: tuning", padding=0))
    if all(own["name"] == BASE for own in record["choice"].values()):
        print("no candidate shows a clear gain: the base policy plays. A larger --budget may show a smaller one")
    print(f"tuning: {folder / CHOICE}\nnext: jacrec eval {chosen.run} --tuned" + (f" --out {folder}" if chosen.out else ""))
    return 0


def _show(line: str, share: float) -> None:
    print(f"{share:4.0%}  {line}", flush=True)
