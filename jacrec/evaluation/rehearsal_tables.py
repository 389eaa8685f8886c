"""The tables and the summary of a rehearsal."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.table import Table

from jacrec.evaluation.markdown import Sheet, terminal_table
from jacrec.evaluation.rehearsal import BASE, Rehearsal

HEAD = ("candidate", "imagined return", "imagined steps", "gain over base ± se", "lost", "")


def choice_sentence(record: Mapping[str, Any]) -> str:
    """The choice and the rule behind it, in one sentence."""
    settings = record["settings"]
    several = bool(record.get("others"))
    where, models = ("each of them", "world models") if several else ("it", "world model")
    rule = (
        f"required: imagined gain minus {settings['confidence']:g} standard errors above {settings['least_gain']:.0%} of the "
        f"base policy's return in {where}, and no more episodes lost"
    )
    if record["choice"] == BASE:
        return f"The rehearsal in the {models} chose the base policy: no candidate gains enough ({rule})."
    return f"The rehearsal in the {models} chose {record['choice']} ({rule})."


def rows(record: Mapping[str, Any]) -> list[list[str]]:
    """The cells below `HEAD`, base first."""
    rehearsal, cells = Rehearsal.from_record(record), []
    for model, there in ((None, rehearsal.episodes), *rehearsal.others.items()):
        for name, episodes in sorted(there.items(), key=lambda item: item[0] != BASE):
            gain = "–" if name == BASE else "{:+.4g} ± {:.2g}".format(*rehearsal.gain(name, model))
            cells.append(
                [
                    name if model is None else f"{name} in {model}",
                    f"{np.mean(episodes.returns):.4g}",
                    f"{np.mean(episodes.lengths):.0f}",
                    gain,
                    str(episodes.lost),
                    "acts" if model is None and name == record["choice"] else "",
                ]
            )
    return cells


def sheet(record: Mapping[str, Any]) -> Sheet:
    """The table for a report."""
    settings = record["settings"]
    end = "may terminate as in the task" if record["termination"] else "do not terminate: the task's rule is not known"
    note = (
        f"{settings['episodes']} imagined episodes of at most {settings['steps']} steps from reset states, with the same noise "
        f"for every candidate; episodes {end}. Returns are on the critic's scale. Lost: episodes that moved more than "
        f"{settings['data_range']:g} standard deviations away from the data. No step was taken in the real environment."
    )
    return Sheet(list(HEAD), rows(record), [choice_sentence(record), note])


def table(record: Mapping[str, Any]) -> Table:
    """The table for a terminal."""
    settings = record["settings"]
    title = f"{settings['episodes']} imagined episodes of at most {settings['steps']} steps"
    return terminal_table(HEAD, rows(record), title=title)
