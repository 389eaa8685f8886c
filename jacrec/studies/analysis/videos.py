"""One video per task: the base policy next to the contestant with the best score."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from jacrec.evaluation.config import EvalConfig
from jacrec.evaluation.rendering import probe, with_remedy
from jacrec.evaluation.video import record_video
from jacrec.planners import PlannerConfig
from jacrec.studies.analysis.read import Study
from jacrec.studies.config import BASE, DEFAULT_MODEL
from jacrec.training.run import load_run


def best_contestant(study: Study, task: str) -> str | None:
    """The contestant other than base with the highest mean over training seeds on a task; None if there are no episodes."""
    means = {}
    for name in study.contestants:
        runs = study.runs(task, name)
        if name != BASE and runs:
            means[name] = float(np.mean([x.mean() for x in runs.values()]))
    return max(means, key=lambda name: means[name], default=None)


def record_study_videos(study: Study, folder: Path, *, seconds: float = 8.0) -> dict[str, str]:
    """Record a video for every task, with its first training seed played; by task the file name, or why there is no video.

    Existing videos are kept.
    """
    rendering = probe()
    if not rendering.ok:
        return dict.fromkeys(study.tasks, f"no video: {with_remedy(rendering.reason)}")
    return {task: _record(study, task, folder, seconds) for task in study.tasks}


def _record(study: Study, task: str, folder: Path, seconds: float) -> str:
    best = best_contestant(study, task)
    if best is None:
        return "no video: no episodes have been played yet"
    seed, play = min(study.of(task, best).items())
    # a contestant that rehearses has the controller chosen for this seed
    controller = study.config.controller(task, play.record.get("choice", best))
    if controller is None:
        return f"no video: {best} acted as the base policy"
    cell, model = study.cell(task, seed), study.config.model_of(best)
    sampler = study.config.sampler_of(best)
    try:
        run = load_run(cell / "run")
    except FileNotFoundError as error:
        return f"no video: {error}"
    play_config, who = asdict(study.config.play_config(task)), "mpc"
    if isinstance(controller, PlannerConfig):
        config, who = EvalConfig(**play_config, dynamics=sampler, planner=controller), controller.planner
    else:
        config = EvalConfig(**play_config, dynamics=sampler, mpc=controller)
    video = record_video(
        run,
        config,
        folder,
        stem=f"{task}-{best}-seed-{seed}",
        label=best,
        who=who,
        seconds=seconds,
        dynamics=None if model == DEFAULT_MODEL else cell / "models" / model,
    )
    return video.path.name if video.path else f"no video: {video.reason}"
