"""Contestants whose settings race in real episodes, cell by cell."""

import json

import pytest

from jacrec import MPCConfig
from jacrec.evaluation.tuning import BASE, FILE, TuneConfig
from jacrec.studies.analysis.settings import control_of, describe, uses_world_model
from jacrec.studies.job_graph import study_jobs
from jacrec.studies.jobs import TunedPlayJob, TuneJob
from jacrec.studies.spec import expect_same_study, parse_study, read_study_config, write_study
from jacrec.studies.sweep import plan
from jacrec.util.files import write_json
from tests.small_run import hardly_trained
from tests.studies.small_study import SMALL, changed

CANDIDATES = {"slow": {"horizon": 1, "particles": 2, "lr": 1e-6}, "fast": {"horizon": 1, "particles": 2, "lr": 1e-4}}
TUNED = SMALL["contestants"] | {"best": {"model": "det", "tune": CANDIDATES}, "best-h0": {"tune": {"a": {"horizon": 0}}}}


def test_a_study_with_tuned_contestants(tmp_path):
    study = parse_study(changed(contestants=TUNED, tuning={"budget": 20, "round": 4}))
    assert study.tuning == TuneConfig(budget=20, round=4)
    assert study.contestants["best"].tune["fast"] == MPCConfig(horizon=1, particles=2, lr=1e-4)
    assert study.contestants["best-h0"].tune["a"].particles == 1
    write_study(study, tmp_path)
    assert read_study_config(tmp_path) == study
    other = parse_study(changed(contestants=TUNED, tuning={"budget": 30, "round": 4}))
    with pytest.raises(ValueError, match=r"tuning\.budget = 20 there, 30 here"):
        expect_same_study(other, tmp_path)

    jobs = {job.id: job for job in study_jobs(study, tmp_path)}
    race, play = (jobs[f"mine/seed-1/{x}/best"] for x in ("tunings", "plays"))
    assert isinstance(race, TuneJob)
    assert isinstance(play, TunedPlayJob)
    assert race.needs == ("mine/seed-1/run", "mine/seed-1/models/det")
    assert play.needs == (*race.needs, race.id)
    todo = [job.id for job in plan(study, tmp_path, only=["mine/seed-1/plays/best"]).todo]
    assert todo == [*race.needs, race.id, play.id]


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    """A cell with a hardly trained run, and its jobs."""
    root = tmp_path_factory.mktemp("tuned")
    run = hardly_trained(root)
    contestants = {"best": {"tune": CANDIDATES}}
    content = {"name": "one", "tasks": {"t": {"data": "jacrec/x-v0"}}, "seeds": [0], "evaluation": {"episodes": 2}}
    study = parse_study(content | {"contestants": contestants, "tuning": {"budget": 12, "round": 2}})
    jobs = {job.id: job for job in study_jobs(study, root)}
    at = root / "cells" / "t" / "seed-0"
    at.mkdir(parents=True)
    run.rename(at / "run")
    return at, jobs


def test_the_choice_plays(cell):
    at, jobs = cell
    race, play = jobs["t/seed-0/tunings/best"], jobs["t/seed-0/plays/best"]
    assert not race.done()
    assert race.perform(lambda share: None).startswith("chose ")
    assert race.done()
    record = json.loads((at / "tunings" / "best" / FILE).read_text())
    for name in (BASE, "fast"):
        record["choice"]["best"] |= {"name": name, "controller": record["settings"]["families"]["best"]["fast"]}
        write_json(at / "tunings" / "best" / FILE, record)
        play.perform(lambda share: None)
        played = json.loads((at / "plays" / "best.json").read_text())
        assert played["choice"] == name
        assert (played["controller"] is None) == (name == BASE)
    jobs["t/seed-0/plays/base"].perform(lambda share: None)


def test_tuned_contestants_in_reports():
    class Study:
        config = parse_study(changed(contestants=TUNED))
        contestants = ("base", *config.contestants)

    assert uses_world_model(Study, "best")
    assert not uses_world_model(Study, "best-h0")
    assert control_of(Study, "best") == ("best-h0", ["candidates"])
    assert "one of 2 settings" in describe(Study, "best")
