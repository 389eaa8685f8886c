"""All jobs of a study and their dependencies."""

from pathlib import Path

from jacrec.control.controller import MPCConfig
from jacrec.studies.config import BASE, DEFAULT_MODEL, StudyConfig
from jacrec.studies.jobs import ChosenPlayJob, Job, PlayJob, RehearsalJob, TrainJob, TunedPlayJob, TuneJob


def study_jobs(study: StudyConfig, folder: Path) -> list[Job]:
    """All jobs of a study in order of priority: cell by cell, each job after the jobs it needs in its cell."""
    return [job for task, seed in study.cells() for job in _cell_jobs(study, task, seed, folder / "cells")]


def _cell_jobs(study: StudyConfig, task: str, seed: int, cells: Path) -> list[Job]:
    spec, at, config = study.tasks[task], f"{task}/seed-{seed}", study.train_config(task, seed)
    run, threads = f"{at}/run", config.threads or 1
    jobs: list[Job] = [TrainJob(run, "train", task, seed, cells, (), threads, config, spec, study.data_root, study.stages)]
    for model in study.models:
        own = study.model_config(task, seed, model)
        towards = (run,) if own.dynamics.tilt and "rebrac" in study.stages else ()
        jobs.append(
            TrainJob(
                f"{at}/models/{model}",
                "model",
                task,
                seed,
                cells,
                towards,
                own.threads or 1,
                own,
                spec,
                study.data_root,
                ("dynamics",),
            )
        )
    play = study.play_config(task)
    # contestants that rehearse come after all of their candidates
    for name in sorted(study.players, key=lambda player: player != BASE and bool(study.contestants[player].rehearse)):
        candidates = () if name == BASE else study.contestants[name].rehearse
        if candidates:
            rehearsal = f"{at}/rehearsals/{name}"
            own = {c: study.controller(task, c) for c in candidates}
            controllers = {c: controller for c, controller in own.items() if isinstance(controller, MPCConfig)}
            others = [other for other in study.seeds if other != seed and study.contestants[name].across_seeds]
            runs = (run, *(f"{task}/seed-{other}/run" for other in others))
            jobs.append(
                RehearsalJob(rehearsal, "rehearse", task, seed, cells, runs, play.threads, controllers, study.rehearsal, play)
            )
            needs = (rehearsal, *(f"{at}/plays/{c}" for c in (BASE, *candidates)))
            jobs.append(ChosenPlayJob(f"{at}/plays/{name}", "play", task, seed, cells, needs, 1))
            continue
        model = study.model_of(name)
        needs = (run,) if model == DEFAULT_MODEL else (run, f"{at}/models/{model}")
        shared = (play.threads, name, model, study.controller(task, name), play, study.sampler_of(name))
        tune = {} if name == BASE else study.contestants[name].tune
        if tune:
            race = f"{at}/tunings/{name}"
            jobs.append(TuneJob(race, "tune", task, seed, cells, needs, *shared, candidates=tune, tuning=study.tuning))
            needs = (*needs, race)
        make = TunedPlayJob if tune else PlayJob
        jobs.append(make(f"{at}/plays/{name}", "play", task, seed, cells, needs, *shared))
    return jobs
