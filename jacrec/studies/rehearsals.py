"""The jobs of contestants that a rehearsal chooses: the rehearsal, and taking over the chosen one's episodes.

RehearsalJob -> rehearsals/CONTESTANT.json      ChoiceJob -> plays/CONTESTANT.json
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

from jacrec.control.controller import MPCConfig
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.rehearsal import RehearsalConfig
from jacrec.evaluation.rehearsed import rehearsal_record
from jacrec.studies.jobs import Report, ResultJob
from jacrec.training.run import load_run
from jacrec.util.files import write_json


@dataclass(frozen=True)
class RehearsalJob(ResultJob):
    """Candidates rehearsed in the world model, rehearsals/CONTESTANT.json."""

    candidates: Mapping[str, MPCConfig]
    rehearsal: RehearsalConfig
    config: PlayConfig

    def perform(self, report: Report) -> str:
        """Rehearse, and write the record."""
        began, (own, *others) = time.perf_counter(), self.needs
        runs = {other.split("/")[-2]: load_run(self.folder / other) for other in others}
        record = rehearsal_record(
            load_run(self.folder / own), self.candidates, self.rehearsal, self.config, others=runs, progress=report
        )
        about = {"task": self.task, "seed": self.seed, "contestant": self.name}
        write_json(self.result, about | record | {"wall_seconds": time.perf_counter() - began})
        return f"chose {record['choice']}"


@dataclass(frozen=True)
class ChoiceJob(ResultJob):
    """The episodes of the contestant that a rehearsal chose, plays/CONTESTANT.json.

    The same controller on the same seeds gives the same returns, so the chosen contestant's record is taken over.
    """

    def seconds(self) -> float | None:
        """Nothing that would foretell another's."""
        return None

    def perform(self, report: Report) -> str:
        """Read the choice, and take over its record."""
        rehearsal, *plays = (self.folder / f"{need}.json" for need in self.needs)
        choice = json.loads(rehearsal.read_text(encoding="utf-8"))["choice"]
        (play,) = (path for path in plays if path.stem == choice)
        record = json.loads(play.read_text(encoding="utf-8"))
        write_json(self.result, record | {"contestant": self.name, "choice": choice})
        return f"plays as {choice}"
