"""What would a rehearsal have gained that asks for a gain of so many standard deviations between its imagined episodes?

    python paper_checks/rehearsal_choices.py            # the 36 runs of results/gains.json
    python paper_checks/rehearsal_choices.py FOLDER     # also runs measured by rehearsal_judgement.py

For the 36 runs also with each task left out: the number of standard deviations is the best one of the other tasks.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jacrec.evaluation.rehearsal import BASE, ImaginedEpisodes, Rehearsal
from jacrec.evaluation.statistics import spearman
from jacrec.studies.analysis.rehearsal_accuracy import ALLOWED

GAINS = Path(__file__).parent / "results" / "gains.json"
CONSISTENCIES = (0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
HARM = -1.0
"""points of normalised score: a choice that loses more is a wrong one"""
Choose = Callable[[float], float]
"""real gain of the choice by a consistency"""


class Candidate(NamedTuple):
    """What is recorded of a rehearsed candidate, in points of normalised score."""

    imagined: float
    spread: float
    """standard deviation between the episodes"""
    allowed: bool
    """whether the rule without a consistency let it act"""
    real: float


def recorded(rehearsals: Sequence[Mapping[str, Any]], episodes: int) -> dict[tuple[str, int], list[Candidate]]:
    """Candidates by task and training seed."""
    cells: dict[tuple[str, int], list[Candidate]] = {}
    for own in rehearsals:
        spread = own["standard_error"] * episodes**0.5
        found = Candidate(own["imagined"], spread, own["verdict"] == ALLOWED, own["real"])
        cells.setdefault((own["task"], own["seed"]), []).append(found)
    return cells


def chosen(candidates: Sequence[Candidate], consistency: float) -> float:
    """The real gain of the choice: of those allowed before, the surest by the new margin, if that is above 0."""

    def sure(own: Candidate) -> float:
        return own.imagined - consistency * own.spread

    return max((own for own in candidates if own.allowed and sure(own) > 0), key=sure, default=Candidate(0, 0, True, 0)).real


def quality(gains: Sequence[float]) -> tuple[int, float]:
    """For ranking: fewest below `HARM` first, then the mean."""
    return -sum(gain < HARM for gain in gains), float(np.mean(gains))


def of_gains() -> None:
    """The runs of the study gains."""
    record = json.loads(GAINS.read_text(encoding="utf-8"))
    for name, rehearsals in record["rehearsals"].items():
        cells = recorded(rehearsals, record["study"]["rehearsal"]["episodes"])
        best = [max(0.0, *(own.real for own in there)) for there in cells.values()]
        print(f"\n{name}, {len(cells)} runs, best in hindsight {np.mean(best):+.1f}\n")
        print("| standard deviations | mean gain | least | runs below −1 | acts |\n" + "|---" * 5 + "|")
        gains = {k: {cell: chosen(there, k) for cell, there in cells.items()} for k in CONSISTENCIES}
        for k, own in gains.items():
            print(row(f"{k:g}", list(own.values())))
        left_out = []
        for task in dict.fromkeys(task for task, _ in cells):
            others = {k: [x for (t, _), x in own.items() if t != task] for k, own in gains.items()}
            k = max(CONSISTENCIES, key=lambda k, others=others: quality(others[k]))
            left_out += [x for (t, _), x in gains[k].items() if t == task]
        print(row("leave one task out", left_out))


def row(name: str, gains: Sequence[float]) -> str:
    """A line of a table."""
    harmed, acts = sum(x < HARM for x in gains), sum(x != 0 for x in gains)
    return f"| {name} | {np.mean(gains):+.2f} | {min(gains):+.1f} | {harmed} | {acts} |"


class Measured:
    """One run's measurements by `rehearsal_judgement.py`."""

    def __init__(self, path: Path):
        self.record = json.loads(path.read_text(encoding="utf-8"))
        self.name, self.rehearsal = self.record["run"], Rehearsal.from_record(self.record["rehearsal"])
        self.candidates = [name for name in self.rehearsal.episodes if name != BASE]

    def gain(self, name: str) -> tuple[float, float]:
        """Real gain in points of normalised score: mean and standard error."""
        real = self.record["real"]
        x = np.subtract(real[name]["returns"], real[BASE]["returns"]) / self.record["point"]
        return float(x.mean()), float(x.std(ddof=1) / len(x) ** 0.5)

    @property
    def base_ratio(self) -> float:
        """The base policy's imagined return over its real one, both over the rehearsal's length."""
        return float(np.mean(self.rehearsal.episodes[BASE].returns) / np.mean(self.record["real"][BASE]["truncated"]))

    def choice(self, consistency: float, episodes: int) -> str:
        """What the rehearsal chooses with the first so many of its episodes."""
        few = {
            name: ImaginedEpisodes(own.returns[:episodes], own.lengths[:episodes], own.lost)
            for name, own in self.rehearsal.episodes.items()
        }
        config = replace(self.rehearsal.config, consistency=consistency)
        return replace(self.rehearsal, config=config, episodes=few, others={}).choice

    def chosen(self, consistency: float, episodes: int) -> float:
        """The real gain of that."""
        choice = self.choice(consistency, episodes)
        return 0.0 if choice == BASE else self.gain(choice)[0]


def of_measured(runs: Sequence[Measured]) -> None:
    """Replays, base policies, candidates and choices."""
    print("\n| run | replayed steps | episodes | bias of the imagined return | rank correlation |\n" + "|---" * 5 + "|")
    for run in runs:
        for steps, own in run.record["replay"].items():
            imagined, real = np.array(own["imagined"]), np.array(own["real"])
            bias = np.mean(imagined - real) / np.mean(np.abs(real))
            print(
                f"| {run.name} | {steps} | {len(real)} | {f'{bias:+.0%}' if abs(bias) < 10 else 'diverged'} | {spearman(imagined, real) or 0:+.2f} |"
            )
    names = runs[0].candidates
    print(f"\n| run | base, imagined / real | {' | '.join(names)} | rank correlation |\n" + "|---" * (len(names) + 3) + "|")
    for run in runs:
        point, cells, shares = run.record["point"], [], []
        for name in names:
            mean, error = run.rehearsal.gain(name)
            spread = error * len(run.rehearsal.episodes[BASE].returns) ** 0.5
            shares.append(mean)
            cells.append("{:+.1f} ± {:.1f}".format(*run.gain(name)) + f" ({mean / point:+.1f}, σ {spread / point:.1f})")
        rank = spearman(shares, [run.gain(name)[0] for name in names])
        print(f"| {run.name} | {run.base_ratio:.2f} | {' | '.join(cells)} | {rank or 0:+.2f} |")
    most = min(len(run.rehearsal.episodes[BASE].returns) for run in runs)
    best = [max(0.0, *(run.gain(name)[0] for name in run.candidates)) for run in runs]
    print(f"\nbest in hindsight {np.mean(best):+.1f}\n\n| standard deviations | mean gain | least | runs below −1 | acts |")
    print("|---" * 5 + "|")
    for episodes in sorted({8, most}):
        for k in CONSISTENCIES:
            print(row(f"{k:g}, {episodes} episodes", [run.chosen(k, episodes) for run in runs]))
    print(
        "\n"
        + ", ".join(
            f"{run.name}: {run.choice(3.0, most)} {run.chosen(3.0, most):+.1f} of {b:+.1f}"
            for run, b in zip(runs, best, strict=True)
        )
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="what rehearsal_judgement.py wrote")
    options = parser.parse_args()
    of_gains()
    if options.folder is not None:
        of_measured([Measured(path) for path in sorted(options.folder.glob("*.json"))])


if __name__ == "__main__":
    main()
