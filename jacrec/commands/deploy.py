"""`jacrec deploy RUN`: run MPC and refresh its models meanwhile."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich import box
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from tyro.conf import Positional

from jacrec.commands.rehearse import named_candidates
from jacrec.commands.tracking import Kinds, deployment_points
from jacrec.evaluation.markdown import terminal
from jacrec.evaluation.rehearsal import CANDIDATES
from jacrec.evaluation.results import interval
from jacrec.evaluation.statistics import Estimate
from jacrec.evaluation.tuning import BASE, tuned_controller
from jacrec.online.config import DeployConfig
from jacrec.online.deploy import FILE, deploy, deployment_folder
from jacrec.online.race import longest
from jacrec.training.run import load_run
from jacrec.training.trackers import Tracking


@dataclass(frozen=True)
class Deploy:
    """Run MPC in the run's environment, store the transitions, and refresh world and reward model from them meanwhile.

    However it ended, the same command resumes replay, models and controller; --episodes may be larger then.
    """

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """the run's folder; it is only read"""
    out: Path | None = None
    """the deployment's folder; None: RUN-deploy"""
    tuned: bool = False
    """play with the settings that `jacrec tune` chose for this run"""
    race: tuple[str, ...] | None = None
    """let candidates race against the base policy by the deployment's own episodes, one after the other; the clear winner plays on, or
    the base policy. Without values h3, h3-large, h5 (those of `jacrec rehearse`); or some of them, or YAML files of others:
    {name: {controller settings}}"""
    log: Kinds = ()
    config: Annotated[DeployConfig, tyro.conf.arg(name="")] = field(default_factory=DeployConfig)


COMMAND = Deploy


def run(args: list[str]) -> int:
    """Run the verb."""
    chosen = tyro.cli(COMMAND, args=args, prog="jacrec deploy")
    config, candidates = chosen.config, None
    if chosen.race is not None:
        if chosen.tuned:
            raise ValueError("tuned: expected no race beside it, since either chooses the settings, got both; leave one out")
        candidates = named_candidates(chosen.race or tuple(CANDIDATES))
    if chosen.tuned:
        config = replace(config, mpc=tuned_controller(load_run(chosen.run), config.mpc, DeployConfig().mpc))
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    shown, folder = Progress(*columns, TextColumn("{task.fields[note]}")), deployment_folder(chosen.run, chosen.out)
    with Tracking(chosen.log, folder, "deploy") as tracking, shown:
        task = shown.add_task("deployment", total=1.0, note="", visible=False)  # shown once it plays, not above an error
        record = deploy(
            chosen.run,
            config,
            candidates=candidates,
            out=chosen.out,
            say=partial(shown.console.print, markup=False, emoji=False, soft_wrap=True),
            progress=lambda x, note: shown.update(task, completed=x, note=note, visible=True),
            on_record=lambda record: tracking.send(deployment_points(record)),
        )
    console = terminal()
    console.print(episodes_table(record))
    if "race" in record:
        console.print(race_table(record))
        if record["race"]["winner"] is None:
            console.print(undecided_sentence(record), soft_wrap=True)
    console.print(refreshes_table(record) if record["refreshes"] else "no refresh took place")
    for sentence in record["notices"]:
        console.print(sentence, soft_wrap=True)
    print(f"deployment: {folder / FILE}")
    return 0


def episodes_table(record: dict[str, Any]) -> Table:
    """Scores per episode, with the versions of the models in use."""
    unit = "return" if record["episodes"][0]["score"] is None else "score"
    table = Table(box=box.SIMPLE_HEAD)
    raced = "race" in record
    for title in (
        "episode",
        *(["player"] if raced else []),
        unit,
        "steps",
        "models",
        "decision: median (ms)",
        "99 %",
        "longest",
    ):
        table.add_column(title, justify="left" if title == "player" else "right")
    for i, episode in enumerate(record["episodes"], 1):
        seen = [episode["version"], *(version for _, version in episode["picked_up"])]
        span = "–".join(dict.fromkeys((str(seen[0]), str(seen[-1]))))
        d = episode["decisions"]
        times = [f"{d['median_ms']:.2f}", f"{d['p99_ms']:.2f}", f"{d['max_ms']:.1f}"]
        table.add_row(
            str(i), *([episode["player"]] if raced else []), f"{episode[unit]:.2f}", str(episode["length"]), span, *times
        )
    values = [episode[unit] for episode in record["episodes"]]
    table.add_section()
    table.add_row("mean", *([""] if raced else []), f"{np.mean(values):.2f}")
    return table


def race_table(record: dict[str, Any]) -> Table:
    """What became of the base policy and of every candidate, and what that has cost."""
    race, played = record["race"], record["episodes"]
    gain = "" if race["gain"] is None else f" (gain {interval(Estimate(**race['gain']), signed=True)})"
    left = {own["name"]: f"dropped after episode {own['episode']}: {own['why']}" for own in race["dropped"]}
    won = (
        {race["winner"]: f"won after episode {race['decided']}{gain}"}
        if race["winner"] in record["settings"]["candidates"]
        else {}
    )
    most = max(episode["lost"] for episode in played)
    caption = f"lost {race['lost']:.1f}, at most {most:.1f}, of an allowance of {race['allowance']:.1f}"
    table = Table(box=box.SIMPLE_HEAD, caption=caption)
    for title in ("player", "episodes", "mean return", "race"):
        table.add_column(title, justify="left" if title in ("player", "race") else "right")
    for name in (BASE, *record["settings"]["candidates"]):
        own = [episode["return"] for episode in played if episode["player"] == name]
        fate = "; ".join(story[name] for story in (won, left) if name in story)
        table.add_row(name, str(len(own)), f"{np.mean(own):.1f}" if own else "–", fate)
    return table


def undecided_sentence(record: dict[str, Any]) -> str:
    """How to go on with a race that is undecided."""
    most = longest(len(record["settings"]["candidates"]))
    return (
        f"the race is undecided after {len(record['episodes'])} episodes; the same command goes on with a larger --episodes: {most} "
        "decide it, or fewer"
    )


def refreshes_table(record: dict[str, Any]) -> Table:
    """Held-out errors before and after each refresh: the deciding one and the root mean square error."""
    asked = record["settings"]["online"]["share"] < 1.0
    table = Table(box=box.SIMPLE_HEAD)
    for title in ("transitions", "part", "criterion", "newest replay", "", "its RMSE", "offline data", "models"):
        table.add_column(title, justify="left" if title in ("part", "criterion") else "right")
    for line in record["refreshes"]:
        for v in line["verdicts"]:
            offline = _change(v["offline"]) if v["offline"] else "missing" if asked and not line["offline"] else ""
            table.add_row(
                str(line["transitions"]),
                v["part"],
                v["judged_by"].replace("_", " "),
                _change((v["before"], v["after"])),
                "accepted" if v["accepted"] else "rejected",
                _change(v["rmse"]),
                offline,
                str(line["version"]),
            )
    return table


def _change(errors: Sequence[float]) -> str:
    before, after = errors
    return f"{before:.4f} → {after:.4f}"
