"""A film per task: the base policy beside the contestant that scored best there."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from jacrec.evaluation.config import EvalConfig
from jacrec.evaluation.rendering import REMEDY, probe
from jacrec.evaluation.video import record_video
from jacrec.planners import PlannerConfig
from jacrec.studies.analysis.read import Study
from jacrec.studies.config import BASE, DEFAULT_MODEL
from jacrec.training.run import load_run


def best_contestant(study: Study, task: str) -> str | None:
    """Whoever has the highest mean over training seeds on a task, the base policy apart; None where nobody has played."""
    means = {}
    for name in study.contestants:
        runs = study.runs(task, name)
        if name != BASE and runs:
            means[name] = float(np.mean([x.mean() for x in runs.values()]))
    return max(means, key=lambda name: means[name], default=None)


def film_study(study: Study, folder: Path, *, seconds: float = 8.0) -> dict[str, str]:
    """Film every task with its first training seed that has been played: the file's name in `folder`, or why there is none.

    A film that is there is kept.
    """
    state = probe()
    if not state.ok:
        return dict.fromkeys(study.tasks, f"no film: {state.reason}; {REMEDY}")
    return {task: _film(study, task, folder, seconds) for task in study.tasks}


def _film(study: Study, task: str, folder: Path, seconds: float) -> str:
    best = best_contestant(study, task)
    if best is None:
        return "no film: nobody has played yet"
    seed, play = min(study.of(task, best).items())
    # of one that rehearses: the one that was chosen with this seed
    controller = study.config.controller(task, play.record.get("choice", best))
    if controller is None:
        return f"no film: {best} acted as the base policy"
    cell, model = study.cell(task, seed), study.config.model_of(best)
    sampler = study.config.sampler_of(best)
    try:
        run = load_run(cell / "run")
    except FileNotFoundError as error:
        return f"no film: {error}"
    play_config, who = asdict(study.config.play_config(task)), "mpc"
    if isinstance(controller, PlannerConfig):
        config, who = EvalConfig(**play_config, dynamics=sampler, planner=controller), controller.planner
    else:
        config = EvalConfig(**play_config, dynamics=sampler, mpc=controller)
    made = record_video(
        run,
        config,
        folder,
        stem=f"{task}-{best}-seed-{seed}",
        label=best,
        who=who,
        seconds=seconds,
        dynamics=None if model == DEFAULT_MODEL else cell / "models" / model,
    )
    return made.path.name if made.path else f"no film: {made.reason}"
