"""Studies on paper: specs, errors that teach, the order of jobs, failures, estimates; nothing is trained."""

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from jacrec.control.config import MPCConfig
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.rehearsal import RehearsalConfig
from jacrec.models.dynamics.sampler import Sampler
from jacrec.studies.config import UNSEEN_SEEDS
from jacrec.studies.executors import Failed, Finished, Progress
from jacrec.studies.jobs import Job, PlayJob
from jacrec.studies.ledger import at_work, locked, read_failure
from jacrec.studies.listing import jobs_of
from jacrec.studies.parse import build
from jacrec.studies.rehearsals import RehearsalJob
from jacrec.studies.show import Clock, Lines, duration, overview
from jacrec.studies.sources import data_source
from jacrec.studies.spec import (
    differences,
    expect_same_study,
    find_spec,
    packaged_specs,
    parse_study,
    read_spec,
    read_study,
    to_yaml,
    write_study,
)
from jacrec.studies.sweep import Plan, expect_data, plan, sweep
from jacrec.training.config import TrainConfig, published_datasets, rebrac_config
from jacrec.util.files import write_json
from tests.conftest import property_cases

SMALL = {
    "name": "small",
    "tasks": {"hopper-medium": {"data": "{task}.hdf5"}, "mine": {"data": "own/mine.npz", "env_id": "Hopper-v4"}},
    "seeds": [0, 1],
    "training": {"rebrac": {"updates": 7, "tau": "1e-2"}, "threads": 2},
    "models": {"det": {"dynamics": {"kind": "deterministic"}}},
    "evaluation": {"episodes": 3},
    "contestants": {"h0": {"horizon": 0}, "mpc": {"lr": "5e-5"}, "one": {"model": "det", "horizon": 1}},
}


def changed(**changes):
    return SMALL | changes


def choosing(**own):
    return changed(contestants=SMALL["contestants"] | {"best": own})


def test_settings_come_from_the_published_ones_then_the_study_then_the_task():
    content = changed(tasks=SMALL["tasks"] | {"hopper-expert": {"data": "x.hdf5", "training": {"rebrac": {"tau": 0.5}}}})
    study = parse_study(content)
    medium, expert = (study.train_config(task, 1) for task in ("hopper-medium", "hopper-expert"))
    assert medium.rebrac == replace(rebrac_config("hopper-medium-v2"), updates=7, tau=0.01)
    assert expert.rebrac == replace(rebrac_config("hopper-expert-v2"), updates=7, tau=0.5)
    assert study.train_config("mine", 1).rebrac == replace(TrainConfig().rebrac, updates=7, tau=0.01)
    assert (medium.seed, medium.threads, study.train_config("mine", 0).env_id) == (1, 2, "Hopper-v4")
    assert study.model_config("mine", 0, "det").dynamics == replace(TrainConfig().dynamics, kind="deterministic")
    assert study.controller("mine", "base") is None
    assert study.controller("mine", "h0") == MPCConfig(horizon=0, particles=1)
    assert study.controller("mine", "mpc") == MPCConfig(lr=5e-5)
    assert study.play_config("mine") == PlayConfig(episodes=3, env_id="Hopper-v4")
    assert study.tasks["hopper-medium"].data == "hopper-medium.hdf5"


def test_a_contestant_may_be_tuned_per_task():
    study = parse_study(changed(tasks={"hopper-medium": {"contestants": {"mpc": {"horizon": 2}}}, "hopper-expert": None}))
    assert study.controller("hopper-medium", "mpc") == MPCConfig(horizon=2, lr=5e-5)
    assert study.controller("hopper-expert", "mpc") == MPCConfig(lr=5e-5)


@pytest.mark.parametrize("name", packaged_specs())
def test_a_resolved_study_reads_back_as_itself(name, tmp_path):
    study = read_spec(find_spec(name))
    write_study(study, tmp_path)
    assert read_study(tmp_path) == study
    assert differences(to_yaml(study), yaml.safe_load((tmp_path / "study.yaml").read_text())) == []
    expect_same_study(study, tmp_path)


def test_a_contestant_may_sample_a_trained_model_otherwise(tmp_path):
    """The networks are trained once: no job is added but that it plays."""
    own = {"model": "default", "dynamics": {"sampler": "ddim", "levels": [2, 5]}, "horizon": 3}
    study = parse_study(changed(contestants=SMALL["contestants"] | {"few": own}))
    assert study.contestants["few"].dynamics == Sampler(sampler="ddim", levels=(2, 5))
    assert parse_study(to_yaml(study)) == study
    before, after = ({job.id: job for job in jobs_of(s, tmp_path)} for s in (parse_study(SMALL), study))
    assert {id.rsplit("/", 1)[-1] for id in after.keys() - before.keys()} == {"few"}
    play = after["hopper-medium/seed-0/plays/few"]
    assert isinstance(play, PlayJob)
    assert play.sampler.levels == (2, 5)
    with pytest.raises(ValueError, match=r"contestants.few.dynamics: unknown setting 'kind'"):
        parse_study(changed(contestants={"few": own | {"dynamics": {"kind": "flow"}}}))


def test_the_tables_are_the_papers():
    published = {name.removesuffix("-v2") for name in published_datasets()}
    first, second = (read_spec(find_spec(f"table-{i}")) for i in (1, 2))
    assert set(first.tasks) | set(second.tasks) == published
    assert (len(first.tasks), len(second.tasks)) == (18, 6)
    assert first.seeds == second.seeds == UNSEEN_SEEDS == tuple(range(10, 20))
    assert (first.evaluation.episodes, second.evaluation.episodes, first.evaluation.seed) == (10, 100, 42)
    for name, part in (("table-3", "dynamics"), ("table-4", "reward")):
        study = read_spec(find_spec(name))
        assert (set(study.tasks), study.stages, study.players) == (set(first.tasks), (part,), ())
    assert len(read_spec(find_spec("table-5")).tasks) == 9
    for study in (first, second):
        for task in study.tasks:
            assert study.train_config(task, 10).rebrac == rebrac_config(f"{task}-v2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("hopper", "expected a mapping"),
        ({"name": "x"}, "expected tasks, got none"),
        ({"tasks": {"hopper-medium": None}}, "expected name, got none"),
        (changed(sedes=[0]), "unknown setting 'sedes'; did you mean 'seeds'"),
        (changed(seeds=[0, 0]), "different whole numbers"),
        (changed(seeds=[]), "different whole numbers"),
        (changed(training={"rebrac": {"tua": 1}}), r"rebrac: unknown setting 'tua'; did you mean 'tau'"),
        (changed(training={"rebrac": {"tau": "fast"}}), r"rebrac.tau: expected a number, got 'fast'"),
        (changed(training={"rebrac": {"updates": 2.5}}), "expected a whole number, got 2.5"),
        (changed(training={"rebrac": {"hidden": 256}}), "expected a list, got 256"),
        (changed(training={"seed": 3}), "it is the study's `seeds`"),
        (changed(training={"dynamics": {"kind": "magic"}}), "'diffusion', 'flow', 'meanflow', 'deterministic'"),
        (changed(evaluation={"episodes": 0}), "at least 1"),
        (changed(evaluation={"mpc": {}}), "unknown setting 'mpc'"),
        (changed(contestants={"base": {}}), "always plays"),
        (changed(contestants={"mpc": {"horizn": 3}}), r"contestants.mpc: unknown setting 'horizn'; did you mean 'horizon'"),
        (changed(contestants={"mpc": {"model": "dte"}}), "expected default, det, got 'dte'"),
        (changed(contestants={"mpc": {"deadline_ms": 3}}), "rows = 1"),
        (changed(contestants={"a/b": {}}), "can be folders"),
        (changed(models={"default": {"dynamics": {"steps": 3}}}), "another name than default"),
        (changed(models={"det": {"kind": "deterministic"}}), "Known are dynamics"),
        (changed(models={"det": {"dynamics": {"knid": "deterministic"}}}), "did you mean 'kind'"),
        (changed(stages=["reward"]), "since contestants play"),
        (changed(stages=["rewards"], contestants={}), "did you mean 'reward'"),
        (changed(tasks={"hopper-medium": {"dat": "x"}}), "did you mean 'data'"),
        (changed(tasks={"hopper-medium": {"data": 3}}), "expected a text, got 3"),
        (changed(tasks={"hopper-medium": {"contestants": {"mcp": {}}}}), "did you mean 'mpc'"),
        (choosing(rehearse=[]), r"best: expected rehearse: \[names of MPC contestants with the default model\]"),
        (choosing(rehearse="mpc"), "and no other setting"),
        (choosing(rehearse=["base"]), "known are h0, mpc"),
        (choosing(rehearse=["one"]), "known are h0, mpc"),
        (choosing(rehearse=["best"]), "known are h0, mpc"),
        (choosing(rehearse=["mpc", "mpc"]), "known are h0, mpc"),
        (choosing(rehearse=[["mpc"]]), "known are h0, mpc"),
        (choosing(rehearse=["mpc"], lr=1e-3), "and no other setting"),
        (
            choosing(rehearse=["mpc"]) | {"rehearsal": {"episodes": 1}},
            "rehearsal: rehearsal.episodes: expected an integer >= 2",
        ),
        (choosing(rehearse=["mpc"]) | {"rehearsal": {"epsiodes": 1}}, "did you mean 'episodes'"),
        (choosing(rehearse=["mpc"]) | {"tasks": {"x": {"contestants": {"best": {"lr": 1}}}}}, "set mpc instead"),
        (
            changed(evaluation={"rows": 1}, contestants={"a": {"deadline_ms": 3}, "b": {"rehearse": ["a"]}}),
            "depend on the clock",
        ),
    ],
)
def test_a_spec_that_makes_no_sense_says_where(content, message):
    with pytest.raises(ValueError, match=message):
        parse_study(content)


CHOOSER = SMALL["contestants"] | {"best": {"rehearse": ["mpc", "h0"]}}


def test_a_contestant_may_be_chosen_by_a_rehearsal(tmp_path):
    study = parse_study(changed(contestants=CHOOSER, rehearsal={"episodes": 3, "least_gain": 0}))
    assert study.contestants["best"].rehearse == ("mpc", "h0")
    assert study.controller("mine", "best") is None
    assert study.rehearsal == RehearsalConfig(episodes=3, least_gain=0.0)
    write_study(study, tmp_path)
    assert read_study(tmp_path) == study
    other = parse_study(changed(contestants=CHOOSER, rehearsal={"episodes": 4, "least_gain": 0}))
    with pytest.raises(ValueError, match=r"rehearsal\.episodes = 3 there, 4 here"):
        expect_same_study(other, tmp_path)
    jobs = {job.id: job for job in jobs_of(study, tmp_path)}
    rehearsal, play = (jobs[f"mine/seed-1/{x}/best"] for x in ("rehearsals", "plays"))
    assert isinstance(rehearsal, RehearsalJob)
    assert (rehearsal.kind, rehearsal.needs) == ("rehearse", ("mine/seed-1/run",))
    assert rehearsal.candidates == {"mpc": MPCConfig(lr=5e-5), "h0": MPCConfig(horizon=0, particles=1)}
    assert (rehearsal.config.env_id, rehearsal.rehearsal.episodes) == ("Hopper-v4", 3)
    assert play.needs == tuple(f"mine/seed-1/{x}" for x in ("rehearsals/best", "plays/base", "plays/mpc", "plays/h0"))
    shown = Console(width=200, record=True, quiet=False, file=io.StringIO())
    shown.print(overview(plan(study, tmp_path)))
    assert "rehearsal best" in shown.export_text()


def test_a_choice_comes_after_all_that_it_may_choose(tmp_path):
    """Whatever the order of the contestants; and who asks for the choice alone gets all that it needs."""
    study = parse_study(changed(contestants={"best": {"rehearse": ["mpc"]}, **SMALL["contestants"]}))
    todo = [job.id for job in plan(study, tmp_path, only=["mine/seed-1/plays/best"]).todo]
    assert todo == [f"mine/seed-1/{x}" for x in ("run", "plays/base", "plays/mpc", "rehearsals/best", "plays/best")]
    assert len(plan(study, tmp_path).todo) == len(jobs_of(study, tmp_path))


@pytest.mark.parametrize("choice", ["base", "mpc", "h0"])
def test_the_chosen_ones_record_is_taken_over(tmp_path, choice):
    study = parse_study(changed(contestants=CHOOSER))
    job = next(job for job in jobs_of(study, tmp_path) if job.id == "mine/seed-0/plays/best")
    assert not job.done()
    for need in job.needs:
        content = {"choice": choice} if "rehearsals" in need else {"contestant": need.rsplit("/")[-1], "returns": [len(need)]}
        write_json(tmp_path / "cells" / f"{need}.json", content)
    assert job.perform(lambda share: None) == f"plays as {choice}"
    assert job.done()
    written = json.loads((tmp_path / "cells" / "mine" / "seed-0" / "plays" / "best.json").read_text())
    assert written == {"contestant": "best", "choice": choice, "returns": [len(f"mine/seed-0/plays/{choice}")]}


def test_specs_are_found_by_path_folder_and_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("name: [")
    with pytest.raises(ValueError, match=r"x\.yaml: expected YAML"):
        read_spec(find_spec("x.yaml"))
    write_study(parse_study(SMALL), tmp_path / "studies")
    assert find_spec("studies") == Path("studies/study.yaml")
    assert read_spec(find_spec("table-2")).name == "table-2"
    with pytest.raises(FileNotFoundError, match="table-1, table-2"):
        find_spec("table-7")
    with pytest.raises(FileNotFoundError, match="jacrec sweep"):
        read_study(tmp_path)


def test_a_study_may_grow_and_nothing_else(tmp_path):
    study = parse_study(SMALL)
    write_study(study, tmp_path)
    grown = SMALL | {
        "seeds": [0, 1, 2],
        "contestants": SMALL["contestants"] | {"more": {}},
        "tasks": SMALL["tasks"] | {"hopper-expert": None},
        "data_root": "/elsewhere",
    }
    expect_same_study(parse_study(grown), tmp_path)
    for other, message in (
        (changed(seeds=[1]), r"seeds: \[0\] there, not here"),
        (changed(evaluation={"episodes": 4}), "evaluation.episodes = 3 there, 4 here"),
        (changed(contestants=SMALL["contestants"] | {"mpc": {"lr": 1}}), r"contestants\.mpc\.lr = 5e-05 there, 1.0 here"),
        (changed(training={}), r"tasks\.mine\.training\.rebrac\.updates = 7 there, 1000000 here"),
        (changed(contestants={"h0": {"horizon": 0}}), r"contestants\.mpc: there, not here"),
    ):
        with pytest.raises(ValueError, match=message):
            expect_same_study(parse_study(other), tmp_path)


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="something else"):
        expect_same_study(parse_study(SMALL), tmp_path)


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(-9, 9), st.booleans())
@property_cases(0.02, 20)
def test_numbers_that_yaml_reads_as_text_are_numbers(x, n, flag):
    @dataclass(frozen=True)
    class Kind:
        a: float = 0.0
        b: int | None = None
        c: tuple[float, ...] = ()
        d: bool = False

    read = yaml.safe_load(f"{{a: {x!r}, b: {n}, c: [{x:e}, {n}], d: {str(flag).lower()}}}")
    assert build(Kind, read, "here") == Kind(x, n, (float(f"{x:e}"), float(n)), flag)
    assert build(Kind, {"b": None}, "here") == Kind()
    with pytest.raises(ValueError, match=r"here\.b: expected a whole number or null"):
        build(Kind, {"b": flag}, "here")


def test_data_are_found_by_d4rls_names(tmp_path, monkeypatch):
    monkeypatch.setenv("JACREC_DATA", str(tmp_path / "got"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "theirs"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    tasks = ["hopper-medium-replay", "antmaze-umaze-diverse"]
    study = parse_study({"name": "x", "tasks": tasks, "data_root": str(tmp_path)})
    with pytest.raises(FileNotFoundError) as raised:
        expect_data(plan(study, tmp_path / "out"))
    for words in (
        "hopper_medium_replay-v2.hdf5",
        "Ant_maze_u-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5",
        "jacrec data get hopper-medium-replay-v2",
        "2 task(s)",
        "--data-root",
        "--only",
    ):
        assert words in str(raised.value)
    deep = tmp_path / "a" / "b" / "hopper_medium_replay-v2.hdf5"
    deep.parent.mkdir(parents=True)
    deep.write_bytes(b"")
    assert data_source(tasks[0], study.tasks[tasks[0]], tmp_path) == str(deep)
    (tmp_path / "hopper-medium-replay-v2.hdf5").write_bytes(b"")
    with pytest.raises(ValueError, match="expected one file"):
        data_source(tasks[0], study.tasks[tasks[0]], tmp_path)
    deep.unlink()
    with pytest.raises(FileNotFoundError, match="1 task"):
        expect_data(plan(study, tmp_path / "out"))
    other = parse_study(changed(tasks={"mine": {"data": "jacrec/none-v0"}, "that": None}))
    with pytest.raises(FileNotFoundError, match="jacrec data make"):
        data_source("mine", other.tasks["mine"])
    with pytest.raises(ValueError, match="one of D4RL's 24"):
        data_source("that", other.tasks["that"])


def test_jobs_and_what_they_need(tmp_path):
    study = parse_study(SMALL)
    jobs = {job.id: job for job in jobs_of(study, tmp_path)}
    assert len(jobs) == 2 * 2 * (1 + 1 + 4)
    assert jobs["mine/seed-1/plays/one"].needs == ("mine/seed-1/run", "mine/seed-1/models/det")
    assert jobs["mine/seed-1/plays/base"].needs == ("mine/seed-1/run",)
    assert [job.seed for job in jobs.values()] == [0] * 12 + [1] * 12
    chosen = plan(study, tmp_path, only=["mine/seed-0/plays/o*"])
    assert [job.id for job in chosen.jobs] == ["mine/seed-0/run", "mine/seed-0/models/det", "mine/seed-0/plays/one"]
    assert [job.id for job in replace(chosen, kinds=("model", "play")).todo] == ["mine/seed-0/models/det"]
    assert {job.seed for job in plan(study, tmp_path, only=["*/seed-1"]).jobs} == {1}
    with pytest.raises(ValueError, match="fits none"):
        plan(study, tmp_path, only=["hopper-mdeium*"])


@dataclass(frozen=True)
class FakeJob(Job):
    """A job whose result is an entry in a set."""

    results: set

    def done(self):
        return self.id in self.results

    def seconds(self):
        return 10.0

    def perform(self, report):
        raise NotImplementedError


class FakeExecutor:
    """Does jobs at once, in this process; the `failures[id]` first attempts fail, and a lost result is not there."""

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
            return [Failed(job.id, "no luck", "Traceback: ...", 1.0, "1")]
        if job.id not in self.lost:
            job.results.add(job.id)
        return [Progress(job.id, 0.5), Finished(job.id, "well", 1.0, "1")]


def fake_plan(folder, needs):
    results = set()
    jobs = tuple(FakeJob(str(i), "play", "t", 0, folder, tuple(map(str, n)), 1, results) for i, n in enumerate(needs))
    return Plan(folder, jobs, frozenset(results))


def quiet_watcher(todo):
    return Lines(todo, 1, Console(quiet=True))


@given(st.data())
@property_cases(0.03, 30)
def test_everything_that_can_be_done_is_done_once(tmp_path_factory, data):
    """Whatever fails how often: a job is finished exactly if it and all it stands on succeed within the attempts."""
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
    begun = {i for i in range(n) if needs[i] <= good}
    assert sorted(map(int, outcome.finished)) == sorted(good)
    assert set(map(int, outcome.failed)) == begun - good
    assert set(map(int, outcome.waiting)) == set(range(n)) - begun
    assert all(outcome.waiting.values())
    for i in begun:
        assert executor.order.count(str(i)) == min(fails[str(i)], retries) + 1
    for job in todo.jobs:
        failure = read_failure(job)
        assert (failure is not None) == (int(job.id) in begun - good)
        if failure is not None:
            assert (failure.attempts, failure.error) == (retries + 1, "no luck")
    lines = [json.loads(line) for line in (todo.folder / "log.jsonl").read_text().splitlines()]
    assert [line["job"] for line in lines] == executor.order


def test_attempts_are_counted_over_starts_and_forgotten_after_a_success(tmp_path):
    todo = fake_plan(tmp_path, [set()])
    for attempts in (1, 2):
        sweep(todo, FakeExecutor({"0": 9}, 1), quiet_watcher(todo), retries=0)
        assert read_failure(todo.jobs[0]).attempts == attempts
    assert sweep(todo, FakeExecutor({}, 1), quiet_watcher(todo)).complete
    assert read_failure(todo.jobs[0]) is None


def test_a_result_that_does_not_arrive_is_a_failure(tmp_path):
    todo = fake_plan(tmp_path, [set(), {0}])
    outcome = sweep(todo, FakeExecutor({}, 1, lost={"0"}), quiet_watcher(todo), retries=0)
    assert "do all machines share this folder" in outcome.failed["0"].error
    assert outcome.waiting == {"1": ["0"]}


def test_a_line_that_a_kill_cut_short_does_not_spoil_the_next(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"job": "a"}\n{"jo')
    todo = fake_plan(tmp_path, [set()])
    sweep(todo, FakeExecutor({}, 1), quiet_watcher(todo))
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["job"] == "0"


def test_time_left_is_told_from_jobs_like_those_left(tmp_path):
    study = parse_study(SMALL)
    jobs = {job.id: job for job in jobs_of(study, tmp_path)}
    clock = Clock(Plan(tmp_path, tuple(jobs.values()), frozenset()))
    left = [jobs["mine/seed-1/run"], jobs["mine/seed-1/plays/base"]]
    assert clock.left(left) == (0.0, 2)
    assert "unknown" in clock.sentence(left, 2)
    clock.add(jobs["hopper-medium/seed-0/run"], 600.0)
    assert clock.left(left) == (600.0, 1)
    clock.add(jobs["mine/seed-0/run"], 120.0)
    clock.add(jobs["hopper-medium/seed-0/plays/mpc"], 60.0)
    assert clock.left(left) == (180.0, 0)
    assert clock.sentence(left, 2) == "about 2 min"
    assert [duration(s) for s in (3.4, 89.9, 600.0, 7500.0)] == ["3 s", "90 s", "10 min", "2 h 5 min"]


def test_the_overview_counts(tmp_path):
    study = parse_study(SMALL)
    (tmp_path / "cells/mine/seed-0/plays").mkdir(parents=True)
    (tmp_path / "cells/mine/seed-0/plays/h0.json").write_text("{}")
    (tmp_path / "cells/mine/seed-1/plays").mkdir(parents=True)
    (tmp_path / "cells/mine/seed-1/plays/h0.failed.json").write_text('{"error": "e", "traceback": "", "attempts": 1}')
    console = Console(width=120, record=True, quiet=False, file=(tmp_path / "screen").open("w"))
    console.print(overview(plan(study, tmp_path)))
    console.file.close()
    text = console.export_text()
    assert "model det" in text
    (row,) = (line for line in text.splitlines() if line.strip().startswith("mine"))
    assert row.split() == ["mine", "0/2", "0/2", "0/2", "1/2", "(1", "failed)", "0/2", "0/2"]


def test_one_sweep_at_a_time(tmp_path):
    assert not at_work(tmp_path)
    with locked(tmp_path):
        assert at_work(tmp_path)
        with pytest.raises(ValueError, match="no sweep at work"), locked(tmp_path):
            pass
    assert not at_work(tmp_path)
