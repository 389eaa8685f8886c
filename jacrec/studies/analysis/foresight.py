"""Does a rehearsal foresee reality? What it imagined of each candidate beside what the candidate's episodes came to.

foreseen(study, chooser) -> list[PredictedGain]      choices(...) agreement(...) regret(...) -> Sheet      findings(...) -> list[str]
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jacrec.evaluation.markdown import Sheet
from jacrec.evaluation.rehearsal import Rehearsal
from jacrec.evaluation.results import interval
from jacrec.evaluation.statistics import spearman
from jacrec.studies.analysis.gains import HARM, average_gain, paired
from jacrec.studies.analysis.read import Study
from jacrec.studies.analysis.settings import candidates_of, choosers, thinks_ahead
from jacrec.studies.config import BASE

ALLOWED, UNSURE, DECLINED = "sure gain: may act", "gain, not sure enough", "no gain, or more episodes lost"
OWN_WORLD_MODEL = "it acts without a world model, but the rehearsal that chooses it imagines in one"


@dataclass(frozen=True)
class PredictedGain:
    """One candidate in one cell; gains over the base policy in points of normalised score."""

    task: str
    seed: int
    candidate: str
    imagined: float
    """over the steps of an imagined episode, which may be fewer than a real one's"""
    standard_error: float
    verdict: str
    """`ALLOWED`, `UNSURE` or `DECLINED`"""
    real: float
    """paired, mean over the cell's real episodes"""
    chosen: bool


def foreseen(study: Study, chooser: str) -> list[PredictedGain]:
    """Every candidate that has been rehearsed and has played, where scores are normalised."""
    found = []
    for task in study.scored_tasks:
        real = {c: _per_seed(study, task, c) for c in candidates_of(study, chooser)}
        for seed in study.seeds:
            record = study.rehearsals.get((task, seed, chooser))
            if record is None:
                continue
            rehearsal, point = Rehearsal.from_record(record), _point(study, task, seed)
            for name, gains in real.items():
                if seed in gains and name in rehearsal.episodes:
                    mean, error = rehearsal.gain(name)
                    found.append(
                        PredictedGain(
                            task,
                            seed,
                            name,
                            mean / point,
                            error / point,
                            _verdict(rehearsal, name),
                            gains[seed],
                            record["choice"] == name,
                        )
                    )
    return found


def choices(study: Study, chooser: str) -> Sheet:
    """How often each candidate was chosen, or none, per task."""
    names = [BASE, *candidates_of(study, chooser)]
    rows, whole = [], Counter()
    for task in study.tasks:
        made = Counter(
            study.rehearsals[task, s, chooser]["choice"] for s in study.seeds if (task, s, chooser) in study.rehearsals
        )
        whole += made
        rows.append([task, *(str(made[name]) for name in names), str(sum(made.values()))])
    rows.append(["all", *(str(whole[name]) for name in names), str(sum(whole.values()))])
    return Sheet(
        ["task", *names, "training seeds"],
        rows,
        [
            f"How often the rehearsal of {chooser} chose each, of as many training seeds as have been rehearsed; {BASE}: thinking "
            "was declined, and it plays as the base policy.",
        ],
    )


def agreement(study: Study, chooser: str) -> Sheet | None:
    """What came of candidates by what their rehearsal said of them; None where nothing can be compared."""
    found = foreseen(study, chooser)
    if not found:
        return None
    rows = []
    for verdict in (ALLOWED, UNSURE, DECLINED):
        real = np.array([x.real for x in found if x.verdict == verdict])
        signs = [str(int(np.sum(what))) for what in (real > 0, real == 0, real < 0)]
        spread = [f"{x:+.1f}" for x in (real.mean(), real.min(), real.max())] if real.size else ["–"] * 3
        rows.append([verdict, str(real.size), *signs, *spread])
    head = ["the rehearsal says", "candidates × cells", "real gain > 0", "= 0", "< 0", "mean real gain", "least", "most"]
    return Sheet(
        head, rows, ["Gains over the base policy in points of normalised score; a cell is a task and a training seed."]
    )


def findings(study: Study, chooser: str) -> list[str]:
    """Agreement of signs and ranks, in sentences."""
    found = foreseen(study, chooser)
    if not found:
        return []
    same = sum(np.sign(x.imagined) == np.sign(x.real) for x in found)
    lines = [
        f"The sign of the imagined gain is the real one's in {same} of {len(found)} candidates × cells "
        f"({same / len(found):.0%}; no change at all counts as a sign)."
    ]
    whole = _rank_correlation(found)
    if whole is not None:
        lines.append(f"Rank correlation (Spearman) of imagined and real gains over all of them: {whole:+.2f}.")
    within = [_rank_correlation([x for x in found if (x.task, x.seed) == cell]) for cell in {(x.task, x.seed) for x in found}]
    known = [r for r in within if r is not None]
    if known:
        lines.append(f"Among the candidates of one cell, mean over {len(known)} cells: {np.mean(known):+.2f}.")
    return lines


def regret(study: Study, chooser: str, *, level: float = 0.95) -> Sheet | None:
    """The choice beside always playing the same candidate, and beside the best in hindsight; None where nobody has played.

    Over the cells in which the chooser and all its candidates have played; each task has the same weight.
    """
    fixed = [BASE, *candidates_of(study, chooser)]
    names = [chooser, *fixed]
    cells = _complete_cells(study, names)
    if not cells:
        return None
    tasks = list(dict.fromkeys(task for task, _ in cells))
    best = {cell: max(gains[name] for name in fixed) for cell, gains in cells.items()}

    def per_task(values: dict[tuple[str, int], float]) -> list[float]:
        return [float(np.mean([v for (t, _), v in values.items() if t == task])) for task in tasks]

    rows = []
    for name in names:
        own = per_task({cell: gains[name] for cell, gains in cells.items()})
        lost = float(np.mean(per_task({cell: best[cell] - gains[name] for cell, gains in cells.items()})))
        below = sum(gains[name] < HARM for gains in cells.values())
        over = None if name == chooser else average_gain(study, chooser, name, tasks=tasks, level=level)
        rows.append(
            [
                name if name == chooser else f"always {name}",
                f"{np.mean(own):+.1f}",
                f"{lost:.1f}",
                f"{min(own):+.1f}",
                f"{below} of {len(cells)}",
                interval(over and over.estimate, signed=True),
            ]
        )
    rows.append(["best in hindsight", f"{np.mean(per_task(best)):+.1f}", "0.0", f"{min(per_task(best)):+.1f}", "–", "–"])
    head = ["who plays", "gain over base", "regret", "worst task", f"cells below {HARM:+g}", f"{chooser} − this"]
    return Sheet(
        head,
        rows,
        [
            f"Over {len(cells)} cells of {len(tasks)} tasks in which {chooser} and all its candidates have played. Regret: what is "
            "missing to the best of base and candidates of each cell, picked by the very episodes that judge it: that best one "
            "flatters itself, the more so the fewer the episodes.",
        ],
    )


def foresight_record(study: Study) -> dict[str, list[dict]]:
    """All of `foreseen` by contestant, ready for JSON."""
    return {chooser: [vars(x) for x in foreseen(study, chooser)] for chooser in choosers(study)}


def rehearsal_note(study: Study, contestant: str) -> str:
    """What has to be said of a contestant that acts without a world model and is chosen in one; empty for any other."""
    needed = bool(candidates_of(study, contestant)) and not thinks_ahead(study, contestant)
    return f"Of {contestant}: {OWN_WORLD_MODEL}." if needed else ""


def _verdict(rehearsal: Rehearsal, name: str) -> str:
    if rehearsal.enough(name):
        return ALLOWED
    more_lost = rehearsal.sure_gain(name) == -np.inf
    return UNSURE if rehearsal.gain(name)[0] > 0 and not more_lost else DECLINED


def _point(study: Study, task: str, seed: int) -> float:
    """One point of normalised score on the critic's reward scale."""
    record = study.plays[task, seed, BASE].record
    scale = study.config.train_config(task, seed).rebrac.reward_scale
    return scale * (record["ref_max"] - record["ref_min"]) / 100


def _per_seed(study: Study, task: str, contestant: str) -> dict[int, float]:
    """The mean paired gain over base by training seed."""
    if contestant == BASE:
        return dict.fromkeys(study.of(task, BASE), 0.0)
    gain = paired(study, task, contestant, BASE)
    return {} if gain is None else dict(zip(gain.seeds, (float(x.mean()) for x in gain.runs), strict=True))


def _complete_cells(study: Study, names: Sequence[str]) -> dict[tuple[str, int], dict[str, float]]:
    """Gains over base by cell and contestant, where all of `names` have played."""
    cells = {}
    for task in study.scored_tasks:
        gains = {name: _per_seed(study, task, name) for name in names}
        for seed in study.seeds:
            if all(seed in own for own in gains.values()):
                cells[task, seed] = {name: own[seed] for name, own in gains.items()}
    return cells


def _rank_correlation(found: Sequence[PredictedGain]) -> float | None:
    return spearman([x.imagined for x in found], [x.real for x in found]) if found else None
