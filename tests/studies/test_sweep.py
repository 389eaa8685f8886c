"""Jobs, dependencies, failures and estimates of sweeps, with fake jobs and executors."""

import io
import json
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from jacrec.control.config import MPCConfig
from jacrec.evaluation.rehearsal import RehearsalConfig
from jacrec.studies.executors import Failed, Finished, Progress
from jacrec.studies.job_graph import study_jobs
from jacrec.studies.jobs import Job, RehearsalJob
from jacrec.studies.ledger import is_locked, locked, read_failure
from jacrec.studies.show import LineWatcher, TimeEstimator, duration, progress_table
from jacrec.studies.spec import (
    expect_same_study,
    parse_study,
    read_study_config,
    write_study,
)
from jacrec.studies.sweep import Plan, plan, sweep
from jacrec.util.files import write_json
from tests.conftest import property_cases
from tests.studies.small_study import REHEARSING, SMALL, changed


def test_contestants_can_rehearse(tmp_path):
    study = parse_study(changed(contestants=REHEARSING, rehearsal={"episodes": 3, "least_gain": 0}))
    assert study.contestants["best"].rehearse == ("mpc", "h0")
    assert study.controller("mine", "best") is None
    assert study.rehearsal == RehearsalConfig(episodes=3, least_gain=0.0)
    write_study(study, tmp_path)
    assert read_study_config(tmp_path) == study
    other = parse_study(changed(contestants=REHEARSING, rehearsal={"episodes": 4, "least_gain": 0}))
    with pytest.raises(ValueError, match=r"rehearsal\.episodes = 3 there, 4 here"):
        expect_same_study(other, tmp_path)
    jobs = {job.id: job for job in study_jobs(study, tmp_path)}
    rehearsal, play = (jobs[f"mine/seed-1/{x}/best"] for x in ("rehearsals", "plays"))
    assert isinstance(rehearsal, RehearsalJob)
    assert (rehearsal.kind, rehearsal.needs) == ("rehearse", ("mine/seed-1/run",))
    assert rehearsal.candidates == {"mpc": MPCConfig(lr=5e-5), "h0": MPCConfig(horizon=0, particles=1)}
    assert (rehearsal.config.env_id, rehearsal.rehearsal.episodes) == ("Hopper-v4", 3)
    assert play.needs == tuple(f"mine/seed-1/{x}" for x in ("rehearsals/best", "plays/base", "plays/mpc", "plays/h0"))
    shown = Console(width=200, record=True, quiet=False, file=io.StringIO())
    shown.print(progress_table(plan(study, tmp_path)))
    assert "rehearsal best" in shown.export_text()


def test_choices_depend_on_all_candidates(tmp_path):
    """In any order of the contestants; selecting only the choice also selects its dependencies."""
    study = parse_study(changed(contestants={"best": {"rehearse": ["mpc"]}, **SMALL["contestants"]}))
    todo = [job.id for job in plan(study, tmp_path, only=["mine/seed-1/plays/best"]).todo]
    assert todo == [f"mine/seed-1/{x}" for x in ("run", "plays/base", "plays/mpc", "rehearsals/best", "plays/best")]
    assert len(plan(study, tmp_path).todo) == len(study_jobs(study, tmp_path))


@pytest.mark.parametrize("choice", ["base", "mpc", "h0"])
def test_the_record_of_the_chosen_candidate_is_copied(tmp_path, choice):
    study = parse_study(changed(contestants=REHEARSING))
    job = next(job for job in study_jobs(study, tmp_path) if job.id == "mine/seed-0/plays/best")
    assert not job.done()
    for need in job.needs:
        content = {"choice": choice} if "rehearsals" in need else {"contestant": need.rsplit("/")[-1], "returns": [len(need)]}
        write_json(tmp_path / "cells" / f"{need}.json", content)
    assert job.perform(lambda share: None) == f"plays as {choice}"
    assert job.done()
    written = json.loads((tmp_path / "cells" / "mine" / "seed-0" / "plays" / "best.json").read_text())
    assert written == {"contestant": "best", "choice": choice, "returns": [len(f"mine/seed-0/plays/{choice}")]}


def test_jobs_and_their_dependencies(tmp_path):
    study = parse_study(SMALL)
    jobs = {job.id: job for job in study_jobs(study, tmp_path)}
    assert len(jobs) == 2 * 2 * (1 + 1 + 4)
    assert jobs["mine/seed-1/plays/one"].needs == ("mine/seed-1/run", "mine/seed-1/models/det")
    assert jobs["mine/seed-1/plays/base"].needs == ("mine/seed-1/run",)
    assert [job.seed for job in jobs.values()] == [0] * 12 + [1] * 12
    chosen = plan(study, tmp_path, only=["mine/seed-0/plays/o*"])
    assert [job.id for job in chosen.jobs] == ["mine/seed-0/run", "mine/seed-0/models/det", "mine/seed-0/plays/one"]
    assert [job.id for job in replace(chosen, kinds=("model", "play")).todo] == ["mine/seed-0/models/det"]
    assert {job.seed for job in plan(study, tmp_path, only=["*/seed-1"]).jobs} == {1}
    with pytest.raises(ValueError, match=r"--only 'hopper-mdeium\*'"):
        plan(study, tmp_path, only=["hopper-mdeium*"])


@dataclass(frozen=True)
class FakeJob(Job):
    """A job whose result is an element of a set."""

    results: set

    def done(self):
        return self.id in self.results

    def seconds(self):
        return 10.0

    def perform(self, report):
        raise NotImplementedError


class FakeExecutor:
    """Does jobs immediately; the first `failures[id]` attempts fail, and results in `lost` are not written."""

    def __init__(self, failures, slots, lost=()):
        self.failures, self.slots, self.lost = dict(failures), slots, lost
        self.running, self.order = [], []

    def submit(self, job):
        assert len(self.running) < self.slots
        assert all(need in job.results for need in job.needs)
        self.running.append(job)
        self.order.append(job.id)

    def wait(self, seconds):
        job = self.running.pop(0)
        if self.failures.get(job.id, 0):
            self.failures[job.id] -= 1
            return [Failed(job.id, "bad luck", "Traceback: ...", 1.0, "1")]
        if job.id not in self.lost:
            job.results.add(job.id)
        return [Progress(job.id, 0.5), Finished(job.id, "well", 1.0, "1")]


def fake_plan(folder, needs):
    results = set()
    jobs = tuple(FakeJob(str(i), "play", "t", 0, folder, tuple(map(str, n)), 1, results) for i, n in enumerate(needs))
    return Plan(folder, jobs, frozenset(results))


def quiet_watcher(todo):
    return LineWatcher(todo, 1, Console(quiet=True))


@given(st.data())
@property_cases(0.03, 30)
def test_every_possible_job_is_done_once(tmp_path_factory, data):
    """A job finishes if and only if it and all its dependencies succeed within the permitted attempts."""
    n = data.draw(st.integers(1, 9))
    needs = [data.draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else set() for i in range(n)]
    fails = {str(i): data.draw(st.integers(0, 3)) for i in range(n)}
    retries = data.draw(st.integers(0, 2))
    todo = fake_plan(tmp_path_factory.mktemp("study"), needs)
    executor = FakeExecutor(fails, data.draw(st.integers(1, 4)))
    outcome = sweep(todo, executor, quiet_watcher(todo), retries=retries)
    good: set[int] = set()
    for i in range(n):
        if fails[str(i)] <= retries and needs[i] <= good:
            good.add(i)
    started = {i for i in range(n) if needs[i] <= good}
    assert sorted(map(int, outcome.finished)) == sorted(good)
    assert set(map(int, outcome.failed)) == started - good
    assert set(map(int, outcome.waiting)) == set(range(n)) - started
    assert all(outcome.waiting.values())
    for i in started:
        assert executor.order.count(str(i)) == min(fails[str(i)], retries) + 1
    for job in todo.jobs:
        failure = read_failure(job)
        assert (failure is not None) == (int(job.id) in started - good)
        if failure is not None:
            assert (failure.attempts, failure.error) == (retries + 1, "bad luck")
    lines = [json.loads(line) for line in (todo.folder / "log.jsonl").read_text().splitlines()]
    assert [line["job"] for line in lines] == executor.order


def test_attempts_accumulate_until_success(tmp_path):
    todo = fake_plan(tmp_path, [set()])
    for attempts in (1, 2):
        sweep(todo, FakeExecutor({"0": 9}, 1), quiet_watcher(todo), retries=0)
        assert read_failure(todo.jobs[0]).attempts == attempts
    assert sweep(todo, FakeExecutor({}, 1), quiet_watcher(todo)).complete
    assert read_failure(todo.jobs[0]) is None


def test_missing_results_are_failures(tmp_path):
    todo = fake_plan(tmp_path, [set(), {0}])
    outcome = sweep(todo, FakeExecutor({}, 1, lost={"0"}), quiet_watcher(todo), retries=0)
    assert "do all machines share this folder" in outcome.failed["0"].error
    assert outcome.waiting == {"1": ["0"]}


def test_log_survives_a_truncated_line(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"job": "a"}\n{"jo')
    todo = fake_plan(tmp_path, [set()])
    sweep(todo, FakeExecutor({}, 1), quiet_watcher(todo))
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["job"] == "0"


def test_time_is_estimated_from_similar_jobs(tmp_path):
    study = parse_study(SMALL)
    jobs = {job.id: job for job in study_jobs(study, tmp_path)}
    estimator = TimeEstimator(Plan(tmp_path, tuple(jobs.values()), frozenset()))
    left = [jobs["mine/seed-1/run"], jobs["mine/seed-1/plays/base"]]
    assert estimator.left(left) == (0.0, 2)
    assert "unknown" in estimator.sentence(left, 2)
    estimator.add(jobs["hopper-medium/seed-0/run"], 600.0)
    assert estimator.left(left) == (600.0, 1)
    estimator.add(jobs["mine/seed-0/run"], 120.0)
    estimator.add(jobs["hopper-medium/seed-0/plays/mpc"], 60.0)
    assert estimator.left(left) == (180.0, 0)
    assert estimator.sentence(left, 2) == "about 2 min"
    assert [duration(s) for s in (3.4, 89.9, 600.0, 7500.0)] == ["3 s", "90 s", "10 min", "2 h 5 min"]


def test_progress_table_counts_jobs(tmp_path):
    study = parse_study(SMALL)
    (tmp_path / "cells/mine/seed-0/plays").mkdir(parents=True)
    (tmp_path / "cells/mine/seed-0/plays/h0.json").write_text("{}")
    (tmp_path / "cells/mine/seed-1/plays").mkdir(parents=True)
    (tmp_path / "cells/mine/seed-1/plays/h0.failed.json").write_text('{"error": "e", "traceback": "", "attempts": 1}')
    console = Console(width=120, record=True, quiet=False, file=(tmp_path / "screen").open("w"))
    console.print(progress_table(plan(study, tmp_path)))
    console.file.close()
    text = console.export_text()
    assert "model det" in text
    (row,) = (line for line in text.splitlines() if line.strip().startswith("mine"))
    assert row.split() == ["mine", "0/2", "0/2", "0/2", "1/2", "(1", "failed)", "0/2", "0/2"]


def test_only_one_sweep_can_run(tmp_path):
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(ValueError, match="expected no running sweep"), locked(tmp_path):
            pass
    assert not is_locked(tmp_path)
