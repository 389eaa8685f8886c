"""The rehearsal of a run: the candidates that come with jacrec, rehearsal.json, and what it says in a table.

CANDIDATES                                                four ways to think, by name
rehearsal_record(run, candidates, config, play) -> dict   what was imagined and what follows, ready for JSON
make_rehearsal(run, folder, ...) -> dict                  FOLDER/rehearsal.json, made or gone on with
read_rehearsal(run, folder, play) -> dict | None          the one that is there
chosen(record) -> MPCConfig | None                        the controller that may act; None: the base policy
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from jacrec.control.controller import MPCConfig
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.contestant import digests
from jacrec.evaluation.markdown import Sheet
from jacrec.evaluation.rehearsal import BASE, Rehearsal, RehearsalConfig, rehearse_run
from jacrec.evaluation.versions import machine, versions
from jacrec.experimental.config import read_mpc_config
from jacrec.training.run import Run, torch_threads
from jacrec.util.files import write_json

FILE = "rehearsal.json"
HEAD = ("candidate", "imagined return", "imagined steps", "gain over base ± se", "lost", "")
CANDIDATES: Mapping[str, MPCConfig] = {
    "h3": MPCConfig(horizon=3, particles=4, lr=2e-4, max_action_change=0.3),
    "h3-restart": MPCConfig(horizon=3, particles=4, updates=3, lr=5e-4, carry="step", max_action_change=0.3),
    "h1-restart": MPCConfig(horizon=1, particles=4, updates=3, lr=1e-3, carry="step", max_action_change=0.3),
    "h8": MPCConfig(horizon=8, particles=2, lr=1e-4, max_action_change=0.3),
}
"""those of paper_checks/studies/gains.yaml, chosen there on training seed 0 of six D4RL-like sets"""


def rehearsal_record(
    run: Run,
    candidates: Mapping[str, MPCConfig],
    config: RehearsalConfig,
    play: PlayConfig,
    *,
    others: Mapping[str, Run] | None = None,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """`rehearse_run` with all that a reader needs to judge it, ready for JSON."""
    with torch_threads(play.threads):
        rehearsal = rehearse_run(run, candidates, config, play, others=others, progress=progress)
    return _about(run, play) | {
        "other_networks": _of_others(others),
        "controllers": {name: asdict(own) for name, own in candidates.items()},
        "versions": versions(),
        "machine": machine(),
        **rehearsal.record(),
    }


def make_rehearsal(
    run: Run,
    folder: Path,
    candidates: Mapping[str, MPCConfig] = CANDIDATES,
    config: RehearsalConfig | None = None,
    play: PlayConfig | None = None,
    *,
    others: Mapping[str, Run] | None = None,
    again: bool = False,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Rehearse and write `folder`/rehearsal.json; one that was made with the same settings is kept as it is.

    Args:
        others: further runs on the same data, in whose world models is rehearsed too, by name.
        again: make it anew whatever is there.

    Raises:
        ValueError: the folder holds a rehearsal of other networks, candidates or settings.
    """
    config, play = config or RehearsalConfig(), play or PlayConfig()
    path = folder / FILE
    if path.is_file() and not again:
        old = json.loads(path.read_text(encoding="utf-8"))
        old["controllers"] = {who: asdict(read_mpc_config(own, f"{path}: {who}")) for who, own in old["controllers"].items()}
        asked = _about(run, play) | {
            "controllers": {name: asdict(own) for name, own in candidates.items()},
            "settings": asdict(config),
        }
        wrong = [key for key, value in asked.items() if old.get(key) != value]
        if old.get("other_networks", {}) != _of_others(others):
            wrong.append("other models")
        if wrong:
            raise ValueError(
                f"{path}: expected no rehearsal or one with the same {', '.join(asked)}, got another "
                f"{', '.join(wrong)}. Write to another folder (--out), or replace it (--again)"
            )
        return old
    began = time.perf_counter()
    record = rehearsal_record(run, candidates, config, play, others=others, progress=progress)
    record |= {"wall_seconds": time.perf_counter() - began}
    write_json(path, record)
    return record


def read_rehearsal(run: Run, folder: Path, play: PlayConfig) -> dict[str, Any] | None:
    """The rehearsal in a folder, whoever its candidates are; None where there is none.

    Raises:
        ValueError: it is of other networks or for another environment.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    wrong = [key for key, value in _about(run, play).items() if record.get(key) != value]
    if wrong:
        raise ValueError(
            f"{path}: expected a rehearsal of this run, got one with another {', '.join(wrong)}; rehearse anew: "
            f"jacrec rehearse {run.path} --again"
        )
    return record


def chosen(record: Mapping[str, Any]) -> MPCConfig | None:
    """The controller that a rehearsal chose; None: the base policy acts."""
    return None if record["choice"] == BASE else read_mpc_config(record["controllers"][record["choice"]])


def verdict(record: Mapping[str, Any]) -> str:
    """What follows from a rehearsal, in a sentence."""
    settings = record["settings"]
    several = bool(record.get("others"))
    where, whole = ("every one of them", "world models") if several else ("it", "world model")
    rule = (
        f"imagined gain less {settings['confidence']:g} standard errors above {settings['least_gain']:.0%} of the base "
        f"policy's return in {where}, no more episodes lost"
    )
    if record["choice"] == BASE:
        return f"The rehearsal in the {whole} chose the base policy: no candidate is good enough there ({rule})."
    return f"The rehearsal in the {whole} chose {record['choice']} ({rule})."


def rows(record: Mapping[str, Any]) -> list[list[str]]:
    """The cells under `HEAD`, base first."""
    rehearsal, found = Rehearsal.from_record(record), []
    for model, there in ((None, rehearsal.episodes), *rehearsal.others.items()):
        for name, episodes in sorted(there.items(), key=lambda item: item[0] != BASE):
            over = "–" if name == BASE else "{:+.4g} ± {:.2g}".format(*rehearsal.gain(name, model))
            found.append(
                [
                    name if model is None else f"{name} in {model}",
                    f"{np.mean(episodes.returns):.4g}",
                    f"{np.mean(episodes.lengths):.0f}",
                    over,
                    str(episodes.lost),
                    "acts" if model is None and name == record["choice"] else "",
                ]
            )
    return found


def sheet(record: Mapping[str, Any]) -> Sheet:
    """The table for a report."""
    settings = record["settings"]
    end = "may end as the task does" if record["termination"] else "end only at their last step: the task's end is not known"
    note = (
        f"{settings['episodes']} imagined episodes of at most {settings['steps']} steps from reset states, the same noise for "
        f"everyone; episodes {end}. Returns are on the critic's scale. Lost: episodes that went further than "
        f"{settings['data_range']:g} standard deviations from the data. No step was taken in the real environment."
    )
    return Sheet(list(HEAD), rows(record), [verdict(record), note])


def table(record: Mapping[str, Any]) -> Table:
    """The table for a terminal."""
    settings = record["settings"]
    title = f"{settings['episodes']} imagined episodes of at most {settings['steps']} steps"
    shown = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1), title_justify="left")
    for i, column in enumerate(HEAD):
        shown.add_column(column, justify="right" if i else "left")
    for row in rows(record):
        shown.add_row(*row)
    return shown


def _of_others(others: Mapping[str, Run] | None) -> dict[str, Any]:
    """Checksums of the world models in which is rehearsed too."""
    return {name: {part: digests(other)[part] for part in ("dynamics", "reward")} for name, other in (others or {}).items()}


def _about(run: Run, play: PlayConfig) -> dict[str, Any]:
    """Whose rehearsal it is."""
    return {"networks": digests(run), "environment": play.env_id or run.info.env_id, "physics": play.physics}
