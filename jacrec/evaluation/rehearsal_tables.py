"""The tables and the summary of a rehearsal."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from rich.table import Table

from jacrec.evaluation.markdown import Sheet, terminal_table
from jacrec.evaluation.rehearsal import BASE, Rehearsal, RehearsalConfig

HEAD = ("candidate", "imagined return", "imagined steps", "gain over base ± se", "lost", "")


def choice_sentence(record: Mapping[str, Any]) -> str:
    """The choice and the rule behind it; for the base policy, why nothing else was chosen."""
    rehearsal, settings = Rehearsal.from_record(record), record["settings"]
    several = bool(record.get("others"))
    where, models = ("each of them", "world models") if several else ("it", "world model")
    rule = (
        f"required: imagined gain minus {margin(rehearsal.config, settings['episodes'])} above {settings['least_gain']:.0%} of "
        f"the base policy's return in {where}, and no more episodes lost"
    )
    if record["choice"] == BASE:
        return f"The rehearsal in the {models} chose the base policy: {_reason(rehearsal)} ({rule})."
    return f"The rehearsal in the {models} chose {record['choice']} ({rule})."


def margin(config: RehearsalConfig, episodes: int) -> str:
    """What is subtracted from a mean imagined gain, in words."""
    if config.margin(episodes) == config.consistency:
        return f"{config.consistency:g} standard deviations between the episodes"
    return f"{config.confidence:g} standard errors"


def _reason(rehearsal: Rehearsal) -> str:
    """Why no candidate acts."""
    candidates = [name for name in rehearsal.episodes if name != BASE]
    best = max(candidates, key=lambda name: rehearsal.gain(name)[0], default=BASE)
    mean, error = rehearsal.gain(best)
    episodes = rehearsal.episodes[BASE]
    if best == BASE or mean <= rehearsal.config.least_gain * abs(np.mean(episodes.returns)):
        return "no candidate gains enough"
    if rehearsal.episodes[best].lost > episodes.lost:
        return f"the world model cannot judge {best}, which leaves the range of the data more often"
    if replace(rehearsal, others={}).passes(best):
        return f"the world models disagree about {best}"
    spread = error * len(episodes.returns) ** 0.5
    return f"{best} gains {mean:+.4g}, but with a standard deviation of {spread:.2g} between the episodes: the world model cannot tell"


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
