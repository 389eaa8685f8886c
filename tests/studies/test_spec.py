"""Specs of studies: layered settings, errors, comparison of studies, and location of data."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jacrec.control.controller import MPCConfig
from jacrec.evaluation.config import PlayConfig
from jacrec.models.dynamics.sampler import Sampler
from jacrec.studies.config import UNSEEN_SEEDS
from jacrec.studies.job_graph import study_jobs
from jacrec.studies.jobs import PlayJob
from jacrec.studies.parse import build
from jacrec.studies.sources import data_source
from jacrec.studies.spec import (
    differences,
    expect_same_study,
    find_spec,
    packaged_specs,
    parse_study,
    read_spec,
    read_study_config,
    to_yaml,
    write_study,
)
from jacrec.studies.sweep import expect_data, plan
from jacrec.training.config import TrainConfig, published_datasets, rebrac_config
from tests.conftest import property_cases
from tests.studies.small_study import SMALL, changed, rehearsing


def test_training_settings_are_layered():
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


def test_contestants_can_have_settings_per_task():
    study = parse_study(changed(tasks={"hopper-medium": {"contestants": {"mpc": {"horizon": 2}}}, "hopper-expert": None}))
    assert study.controller("hopper-medium", "mpc") == MPCConfig(horizon=2, lr=5e-5)
    assert study.controller("hopper-expert", "mpc") == MPCConfig(lr=5e-5)


@pytest.mark.parametrize("name", packaged_specs())
def test_a_resolved_study_is_read_back_unchanged(name, tmp_path):
    study = read_spec(find_spec(name))
    write_study(study, tmp_path)
    assert read_study_config(tmp_path) == study
    assert differences(to_yaml(study), yaml.safe_load((tmp_path / "study.yaml").read_text())) == []
    expect_same_study(study, tmp_path)


def test_contestants_can_use_other_sampling_settings(tmp_path):
    """The model is trained once: only the play is added to the jobs."""
    own = {"model": "default", "dynamics": {"sampler": "ddim", "levels": [2, 5]}, "horizon": 3}
    study = parse_study(changed(contestants=SMALL["contestants"] | {"few": own}))
    assert study.contestants["few"].dynamics == Sampler(sampler="ddim", levels=(2, 5))
    assert parse_study(to_yaml(study)) == study
    before, after = ({job.id: job for job in study_jobs(s, tmp_path)} for s in (parse_study(SMALL), study))
    assert {id.rsplit("/", 1)[-1] for id in after.keys() - before.keys()} == {"few"}
    play = after["hopper-medium/seed-0/plays/few"]
    assert isinstance(play, PlayJob)
    assert play.sampler.levels == (2, 5)
    with pytest.raises(ValueError, match=r"contestants.few.dynamics: unknown setting 'kind'"):
        parse_study(changed(contestants={"few": own | {"dynamics": {"kind": "flow"}}}))


def test_packaged_specs_cover_the_papers_tables():
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
        ("hopper", "expected a mapping.*got 'hopper'"),
        ({"name": "x"}, "expected tasks, got none"),
        ({"tasks": {"hopper-medium": None}}, "expected name, got none"),
        (changed(sedes=[0]), "unknown setting 'sedes'; did you mean 'seeds'"),
        (changed(seeds=[0, 0]), r"seeds: .*got \[0, 0\]"),
        (changed(seeds=[]), r"seeds: .*got \[\]"),
        (changed(training={"rebrac": {"tua": 1}}), r"rebrac: unknown setting 'tua'; did you mean 'tau'"),
        (changed(training={"rebrac": {"tau": "fast"}}), r"rebrac.tau: expected a number, got 'fast'"),
        (changed(training={"rebrac": {"updates": 2.5}}), r"updates: expected an integer, got 2\.5"),
        (changed(training={"rebrac": {"hidden": 256}}), r"hidden: expected a list, got 256"),
        (changed(training={"seed": 3}), r"training\.seed: .*got 3.*the study's `seeds`"),
        (changed(training={"dynamics": {"kind": "magic"}}), "'diffusion', 'flow', 'meanflow', 'deterministic'"),
        (changed(evaluation={"episodes": 0}), r"evaluation: episodes: .*got 0"),
        (changed(evaluation={"mpc": {}}), "unknown setting 'mpc'"),
        (changed(contestants={"base": {}}), r"contestants: .*got base"),
        (changed(contestants={"mpc": {"horizn": 3}}), r"contestants.mpc: unknown setting 'horizn'; did you mean 'horizon'"),
        (changed(contestants={"mpc": {"model": "dte"}}), r"mpc\.model: .*default, det, got 'dte'"),
        (changed(contestants={"mpc": {"deadline_ms": 3}}), r"mpc\.deadline_ms: expected rows = 1"),
        (changed(contestants={"a/b": {}}), "got 'a/b'"),
        (changed(models={"default": {"dynamics": {"steps": 3}}}), r"models\.default: .*got "),
        (changed(models={"det": {"kind": "deterministic"}}), r"models\.det: unknown setting 'kind'.* dynamics$"),
        (changed(models={"det": {"dynamics": {"knid": "deterministic"}}}), "did you mean 'kind'"),
        (changed(stages=["reward"]), r"stages: .*got reward$"),
        (changed(stages=["rewards"], contestants={}), "did you mean 'reward'"),
        (changed(tasks={"hopper-medium": {"dat": "x"}}), "did you mean 'data'"),
        (changed(tasks={"hopper-medium": {"data": 3}}), r"data: expected a string, got 3"),
        (changed(tasks={"hopper-medium": {"contestants": {"mcp": {}}}}), "did you mean 'mpc'"),
        (rehearsing(rehearse=[]), r"best: .*'rehearse': \[\]"),
        (rehearsing(rehearse="mpc"), r"best: .*'rehearse': 'mpc'"),
        (rehearsing(rehearse=["base"]), r"best: .*are h0, mpc$"),
        (rehearsing(rehearse=["one"]), r"best: .*are h0, mpc$"),
        (rehearsing(rehearse=["best"]), r"best: .*are h0, mpc$"),
        (rehearsing(rehearse=["mpc", "mpc"]), r"best: .*are h0, mpc$"),
        (rehearsing(rehearse=[["mpc"]]), r"best: .*are h0, mpc$"),
        (rehearsing(tune={}), r"best: expected tune"),
        (rehearsing(tune={"base": {}}), r"best: expected tune"),
        (rehearsing(tune={"a": {}}, lr=1e-3), r"best: .*'lr'"),
        (rehearsing(tune={"a": {"planner": "mppi"}}), r"best\.tune\.a: "),
        (rehearsing(tune={"a": {"deadline_ms": 3}}), r"best\.tune\.a: .*deadline_ms"),
        (rehearsing(tune={"a": {}}, model="two"), r"best\.model: .*'two'"),
        (rehearsing(tune={"a": {}}) | {"tuning": {"seed": 42}}, r"tuning\.seed: .*got 42"),
        (rehearsing(tune={"a": {}}) | {"tuning": {"buget": 9}}, "did you mean 'budget'"),
        (rehearsing(rehearse=["mpc"], lr=1e-3), r"best: .*'lr': 0\.001"),
        (
            rehearsing(rehearse=["mpc"]) | {"rehearsal": {"episodes": 1}},
            r"rehearsal\.episodes: .*>= 2, got 1",
        ),
        (rehearsing(rehearse=["mpc"]) | {"rehearsal": {"epsiodes": 1}}, "did you mean 'episodes'"),
        (
            rehearsing(rehearse=["mpc"]) | {"tasks": {"x": {"contestants": {"best": {"lr": 1}}}}},
            r"contestants\.best: .*set mpc",
        ),
        (
            changed(evaluation={"rows": 1}, contestants={"a": {"deadline_ms": 3}, "b": {"rehearse": ["a"]}}),
            r"b\.rehearse: .*got a;",
        ),
    ],
)
def test_invalid_specs_are_rejected(content, message):
    with pytest.raises(ValueError, match=message):
        parse_study(content)


def test_find_spec_by_path_folder_and_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("name: [")
    with pytest.raises(ValueError, match=r"x\.yaml: "):
        read_spec(find_spec("x.yaml"))
    write_study(parse_study(SMALL), tmp_path / "studies")
    assert find_spec("studies") == Path("studies/study.yaml")
    assert read_spec(find_spec("table-2")).name == "table-2"
    with pytest.raises(FileNotFoundError, match="table-1, table-2"):
        find_spec("table-7")
    with pytest.raises(FileNotFoundError, match="jacrec sweep"):
        read_study_config(tmp_path)


def test_studies_can_only_be_extended(tmp_path):
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


def test_other_folders_are_rejected(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="got something else"):
        expect_same_study(parse_study(SMALL), tmp_path)


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(-9, 9), st.booleans())
@property_cases(0.02, 20)
def test_strings_are_converted_to_floats_where_expected(x, n, flag):
    @dataclass(frozen=True)
    class Kind:
        a: float = 0.0
        b: int | None = None
        c: tuple[float, ...] = ()
        d: bool = False

    read = yaml.safe_load(f"{{a: {x!r}, b: {n}, c: [{x:e}, {n}], d: {str(flag).lower()}}}")
    assert build(Kind, read, "here") == Kind(x, n, (float(f"{x:e}"), float(n)), flag)
    assert build(Kind, {"b": None}, "here") == Kind()
    with pytest.raises(ValueError, match=r"here\.b: expected an integer or null"):
        build(Kind, {"b": flag}, "here")


def test_data_sources(tmp_path, monkeypatch):
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
    with pytest.raises(ValueError, match=r"hopper-medium-replay-v2: .*got .*hdf5, .*hdf5;"):
        data_source(tasks[0], study.tasks[tasks[0]], tmp_path)
    deep.unlink()
    with pytest.raises(FileNotFoundError, match="1 task"):
        expect_data(plan(study, tmp_path / "out"))
    other = parse_study(changed(tasks={"mine": {"data": "jacrec/none-v0"}, "that": None}))
    with pytest.raises(FileNotFoundError, match="jacrec data make"):
        data_source("mine", other.tasks["mine"])
    with pytest.raises(ValueError, match=r"^that: .*24 data sets"):
        data_source("that", other.tasks["that"])
