"""Accuracy of rehearsals: the imagined gain of each candidate compared with its real gain."""

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
from jacrec.studies.analysis.settings import candidates_of, rehearsing_contestants, uses_world_model
from jacrec.studies.config import BASE

ALLOWED, UNSURE, DECLINED = "sure gain: may act", "gain, not sure enough", "no gain, or more episodes lost"
"""verdicts of a rehearsal on a candidate, as recorded"""


@dataclass(frozen=True)
class PredictedGain:
    """Gains of one candidate over the base policy in one cell, in points of normalised score."""

    task: str
    seed: int
    candidate: str
    imagined: float
    """over an imagined episode, which may be shorter than a real one"""
    standard_error: float
    """of `imagined`"""
    verdict: str
    """`ALLOWED`, `UNSURE` or `DECLINED`"""
    real: float
    """mean paired difference of the cell's real episodes"""
    chosen: bool


def predicted_gains(study: Study, contestant: str) -> list[PredictedGain]:
    """All candidates that have been rehearsed and have played, on tasks with normalised scores."""
    found = []
    for task in study.scored_tasks:
        real = {c: _gains_by_seed(study, task, c) for c in candidates_of(study, contestant)}
        for seed in study.seeds:
            record = study.rehearsals.get((task, seed, contestant))
            point = None if record is None else _point(study, task, seed)
            if record is None or point is None:
                continue
            rehearsal = Rehearsal.from_record(record)
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


def choices(study: Study, contestant: str) -> Sheet:
    """How often each candidate, or the base policy, was chosen per task."""
    names = [BASE, *candidates_of(study, contestant)]
    rows, total = [], Counter()
    for task in study.tasks:
        records = [study.rehearsals.get((task, seed, contestant)) for seed in study.seeds]
        counts = Counter(record["choice"] for record in records if record is not None)
        total += counts
        rows.append([task, *(str(counts[name]) for name in names), str(sum(counts.values()))])
    rows.append(["all", *(str(total[name]) for name in names), str(sum(total.values()))])
    return Sheet(
        ["task", *names, "training seeds"],
        rows,
        [
            f"How often the rehearsal of {contestant} chose each candidate, over the training seeds rehearsed; {BASE}: no "
            f"candidate passed, and {contestant} plays as the base policy.",
        ],
    )


def agreement(study: Study, contestant: str) -> Sheet | None:
    """Real gains of the candidates by the verdict of their rehearsal; None if nothing can be compared."""
    found = predicted_gains(study, contestant)
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


def findings(study: Study, contestant: str) -> list[str]:
    """Agreement of imagined and real gains in sign and rank, in sentences."""
    found = predicted_gains(study, contestant)
    if not found:
        return []
    same = sum(np.sign(x.imagined) == np.sign(x.real) for x in found)
    lines = [
        f"The imagined gain has the sign of the real gain in {same} of {len(found)} candidates × cells "
        f"({same / len(found):.0%}; zero counts as a sign)."
    ]
    overall = _rank_correlation(found)
    if overall is not None:
        lines.append(f"Rank correlation (Spearman) of imagined and real gains over all of them: {overall:+.2f}.")
    within = [_rank_correlation([x for x in found if (x.task, x.seed) == cell]) for cell in {(x.task, x.seed) for x in found}]
    known = [r for r in within if r is not None]
    if known:
        lines.append(f"Among the candidates of one cell, mean over {len(known)} cells: {np.mean(known):+.2f}.")
    return lines


def regret(study: Study, contestant: str, *, level: float = 0.95) -> Sheet | None:
    """The rehearsed choice compared with each fixed candidate and with the best in hindsight; None without complete cells.

    Covers the cells in which the contestant and all of its candidates have played; tasks have equal weights.
    """
    fixed = [BASE, *candidates_of(study, contestant)]
    names = [contestant, *fixed]
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
        over = None if name == contestant else average_gain(study, contestant, name, tasks=tasks, level=level)
        rows.append(
            [
                name if name == contestant else f"always {name}",
                f"{np.mean(own):+.1f}",
                f"{lost:.1f}",
                f"{min(own):+.1f}",
                f"{below} of {len(cells)}",
                interval(over and over.estimate, signed=True),
            ]
        )
    rows.append(["best in hindsight", f"{np.mean(per_task(best)):+.1f}", "0.0", f"{min(per_task(best)):+.1f}", "–", "–"])
    head = ["contestant", "gain over base", "regret", "worst task", f"cells below {HARM:+g}", f"{contestant} − this"]
    return Sheet(
        head,
        rows,
        [
            f"Over {len(cells)} cells of {len(tasks)} tasks in which {contestant} and all its candidates have played. Regret: "
            "difference to the best of base and candidates in each cell. That best is selected by the same episodes that evaluate "
            "it, so it is overestimated, the more so the fewer the episodes.",
        ],
    )


def predicted_gains_record(study: Study) -> dict[str, list[dict]]:
    """`predicted_gains` of all contestants that rehearse, ready for JSON."""
    return {name: [vars(x) for x in predicted_gains(study, name)] for name in rehearsing_contestants(study)}


def rehearsal_note(study: Study, contestant: str) -> str:
    """A note on a contestant that acts without a world model but is rehearsed in one; empty for any other."""
    needed = bool(candidates_of(study, contestant)) and not uses_world_model(study, contestant)
    return f"{contestant} acts without a world model, but the rehearsal that chooses it uses one." if needed else ""


def _verdict(rehearsal: Rehearsal, name: str) -> str:
    if rehearsal.passes(name):
        return ALLOWED
    more_lost = rehearsal.confident_gain(name) == -np.inf
    return UNSURE if rehearsal.gain(name)[0] > 0 and not more_lost else DECLINED


def _point(study: Study, task: str, seed: int) -> float | None:
    """The value of one point of normalised score on the critic's reward scale; None if scores are no function of the return."""
    record = study.plays[task, seed, BASE].record
    if record["ref_min"] is None or record["ref_max"] is None:
        return None
    scale = study.config.train_config(task, seed).rebrac.reward_scale
    return scale * (record["ref_max"] - record["ref_min"]) / 100


def _gains_by_seed(study: Study, task: str, contestant: str) -> dict[int, float]:
    """Mean paired gain over base by training seed."""
    if contestant == BASE:
        return dict.fromkeys(study.of(task, BASE), 0.0)
    gain = paired(study, task, contestant, BASE)
    return {} if gain is None else dict(zip(gain.seeds, (float(x.mean()) for x in gain.runs), strict=True))


def _complete_cells(study: Study, names: Sequence[str]) -> dict[tuple[str, int], dict[str, float]]:
    """Gains over base by cell and contestant, for the cells in which all of `names` have played."""
    cells = {}
    for task in study.scored_tasks:
        gains = {name: _gains_by_seed(study, task, name) for name in names}
        for seed in study.seeds:
            if all(seed in own for own in gains.values()):
                cells[task, seed] = {name: own[seed] for name, own in gains.items()}
    return cells


def _rank_correlation(found: Sequence[PredictedGain]) -> float | None:
    return spearman([x.imagined for x in found], [x.real for x in found]) if found else None
