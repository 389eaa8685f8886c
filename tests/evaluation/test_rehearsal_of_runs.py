"""Rehearsals of trained runs: records, the command, evaluations and sweeps."""

import json
import re
from dataclasses import asdict, replace

import pytest
import torch
import yaml

from jacrec import cli
from jacrec.commands.rehearse import named_candidates
from jacrec.control.controller import MPCConfig
from jacrec.evaluation import evaluate as evaluation
from jacrec.evaluation import rehearsal_tables
from jacrec.evaluation.config import EvalConfig, PlayConfig
from jacrec.evaluation.evaluate import acts_as_base, evaluate, read_evaluation
from jacrec.evaluation.rehearsal import (
    BASE,
    FILE,
    RehearsalConfig,
    chosen_controller,
    make_rehearsal,
    read_rehearsal,
)
from jacrec.evaluation.run_report import write_run_report
from jacrec.studies.job_graph import study_jobs
from jacrec.studies.spec import read_spec
from jacrec.training.run import load_run
from tests.paper_checks.test_paper_checks import SCRIPTS

SHORT = RehearsalConfig(episodes=2, steps=5)
PLAY = PlayConfig(episodes=2, probe_every=4, probe_particles=2)
MINE = {"a": MPCConfig(horizon=1, particles=2, lr=1e-3), "b": MPCConfig(horizon=0, particles=1, lr=1e-3)}
CONFIG = EvalConfig(episodes=2, probe_every=4, probe_particles=2, growth_horizon=2, rehearse=True)


def write_choice(folder, run, choice):
    """Make a rehearsal in the folder with the given choice."""
    record = make_rehearsal(run, folder, MINE, SHORT, PLAY, again=True)
    path = folder / FILE
    path.write_text(json.dumps(record | {"choice": choice}))
    return path


def as_json(record):
    return json.loads(json.dumps(record))


def test_the_recorded_study_keeps_its_rule():
    study = read_spec(SCRIPTS / "studies" / "gains.yaml")
    assert study.contestants["mpc"].rehearse == ("h3", "h3-restart", "h1-restart", "h8")
    assert study.rehearsal == RehearsalConfig(consistency=0)  # there was none


def test_rehearsals_are_not_overwritten(trained, tmp_path):
    run = load_run(trained)
    shares = []
    first = make_rehearsal(run, tmp_path, MINE, SHORT, PLAY, progress=shares.append)
    assert shares == pytest.approx([1 / 3, 2 / 3, 1])
    assert first == json.loads((tmp_path / "rehearsal.json").read_text())
    assert (first["environment"], first["termination"]) == ("Hopper-v4", True)
    assert set(first["episodes"]) == {BASE, "a", "b"}
    before = (tmp_path / "rehearsal.json").stat().st_mtime_ns
    assert make_rehearsal(run, tmp_path, MINE, SHORT, PLAY) == first
    assert (tmp_path / "rehearsal.json").stat().st_mtime_ns == before
    earlier = json.loads((tmp_path / "rehearsal.json").read_text())
    del earlier["settings"]["consistency"]
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier/rehearsal.json").write_text(json.dumps(earlier))
    kept = make_rehearsal(run, tmp_path / "earlier", MINE, replace(SHORT, consistency=0.0), PLAY)
    assert kept["episodes"] == first["episodes"]
    timed = {"wall_seconds"}
    again = make_rehearsal(run, tmp_path, MINE, SHORT, PLAY, again=True)
    assert {k: v for k, v in again.items() if k not in timed} == {k: v for k, v in first.items() if k not in timed}
    other = MINE | {"b": replace(MINE["b"], lr=0.5)}
    for candidates, config, others, wrong in (
        (MINE, replace(SHORT, seed=8), None, f"settings.seed: {SHORT.seed} there, 8 here"),
        ({"a": MINE["a"]}, SHORT, None, "controllers: a, b there, a here"),
        (other, SHORT, None, f"controllers.b.lr: {MINE['b'].lr} there, 0.5 here"),
        (MINE, SHORT, {"second": run}, "other_networks: none there, second here"),
    ):
        with pytest.raises(ValueError, match=rf"got one that differs in {re.escape(wrong)}\. .*--again"):
            make_rehearsal(run, tmp_path, candidates, config, PLAY, others=others)
    with torch.no_grad():
        next(run.policy.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match=r"differs in networks\.\w+: .*jacrec rehearse"):
        read_rehearsal(run, tmp_path, PLAY)


def test_chosen_controller(trained, tmp_path):
    record = make_rehearsal(load_run(trained), tmp_path, MINE, SHORT, PLAY)
    assert chosen_controller(record | {"choice": "a"}) == MINE["a"]
    assert chosen_controller(record | {"choice": BASE}) is None
    assert "chose the base policy" in rehearsal_tables.choice_sentence(record | {"choice": BASE})
    text = rehearsal_tables.sheet(record | {"choice": "b"}).markdown()
    assert [row.count("acts") for row in text.splitlines()[2:5]] == [0, 0, 1]
    assert "No step was taken in the real environment" in text


def test_mpc_plays_the_chosen_candidate(trained, tmp_path):
    run = load_run(trained)
    write_choice(tmp_path, run, "a")
    record = evaluate(run, CONFIG, out=tmp_path, quiet=True)
    assert not acts_as_base(record)
    assert record["contestants"]["mpc"]["controller"] == record["settings"]["mpc"] == asdict(MINE["a"])
    assert record["contestants"]["h0"]["controller"] == asdict(replace(MINE["a"], horizon=0, particles=1))
    plain = evaluate(run, replace(CONFIG, rehearse=False, mpc=MINE["a"]), out=tmp_path / "plain", quiet=True)
    assert plain["rehearsal"] is None
    assert plain["contestants"]["mpc"]["returns"] == record["contestants"]["mpc"]["returns"]
    text = write_run_report(trained, tmp_path).read_text()
    assert "## Rehearsal" in text
    assert "The rehearsal in the world model chose a " in text
    assert "## Rehearsal" not in write_run_report(trained, tmp_path / "plain").read_text()
    write_choice(tmp_path, run, "b")
    with pytest.raises(ValueError, match=r"settings\.mpc\.horizon: 1 there, 0 here; .*rehearsal\.choice: a there, b here"):
        evaluate(run, CONFIG, out=tmp_path, quiet=True)


def test_mpc_acts_as_the_base_policy_if_chosen(trained, tmp_path, monkeypatch):
    run = load_run(trained)
    write_choice(tmp_path, run, BASE)
    record = evaluate(run, CONFIG, out=tmp_path, quiet=True)
    assert acts_as_base(record)
    base, mpc = (record["contestants"][name] for name in ("base", "mpc"))
    assert {k: v for k, v in mpc.items() if k != "wall_seconds"} == {k: v for k, v in base.items() if k != "wall_seconds"}
    text = write_run_report(trained, tmp_path).read_text()
    assert "MPC acts as the base policy" in text
    assert "What the world model adds" not in text
    monkeypatch.setattr(evaluation, "_contestant", None)  # all contestants have played
    assert as_json(evaluate(run, CONFIG, out=tmp_path, quiet=True)) == read_evaluation(tmp_path) == as_json(record)


def test_a_missing_rehearsal_is_made(trained, tmp_path, monkeypatch):
    calls = []

    def rehearsal(run, folder, **options):
        calls.append(options["play"])
        return make_rehearsal(run, folder, MINE, SHORT, options["play"])

    monkeypatch.setattr(evaluation, "make_rehearsal", rehearsal)
    record = evaluate(trained, replace(CONFIG, contestants=()), out=tmp_path, quiet=True)
    assert record["rehearsal"] == json.loads((tmp_path / "rehearsal.json").read_text())
    assert len(calls) == 1
    evaluate(trained, replace(CONFIG, contestants=()), out=tmp_path, quiet=True)
    assert len(calls) == 1


def test_old_evaluations_without_rehearsals_are_resumed(trained, tmp_path):
    config = replace(CONFIG, rehearse=False, contestants=("mpc",), mpc=MINE["b"])
    record = evaluate(trained, config, out=tmp_path, quiet=True)
    old = json.loads(json.dumps(record))
    del old["rehearsal"], old["settings"]["rehearse"], old["settings"]["mpc"]["max_action_change"]
    (tmp_path / "evaluation.json").write_text(json.dumps(old))
    write_run_report(trained, tmp_path)
    assert as_json(evaluate(trained, config, out=tmp_path, quiet=True)) == as_json(record)


def test_rehearse_excludes_mpc_settings():
    with pytest.raises(ValueError, match=r"^mpc: .*rehearse.*got MPCConfig"):
        replace(CONFIG, mpc=MINE["a"])


def test_rehearse_and_eval_commands(trained, tmp_path, monkeypatch, capsys):
    own = tmp_path / "mine.yaml"
    own.write_text(yaml.safe_dump({"slow": {"horizon": 1, "particles": 1, "lr": 1e-5}}))
    rehearse = ["rehearse", str(trained), "--out", str(tmp_path), "--candidates", "h3", str(own), "--episodes", "2"]
    assert cli.main([*rehearse, "--steps", "3"]) == 0
    out = capsys.readouterr().out
    record = json.loads((tmp_path / "rehearsal.json").read_text())
    assert list(record["episodes"]) == [BASE, "h3", "slow"]
    for part in ("imagined return", "slow", "The rehearsal in the world model chose", f"jacrec eval {trained} --rehearse"):
        assert part in out
    assert cli.main([*rehearse, "--steps", "4"]) == cli.USAGE_ERROR
    assert "--again" in capsys.readouterr().err
    assert "--others" in out
    assert cli.main([*rehearse, "--steps", "3", "--others", str(trained)]) == cli.USAGE_ERROR
    assert "other_networks: none there" in capsys.readouterr().err
    assert cli.main([*rehearse, "--steps", "3", "--others", str(trained), "--again"]) == 0
    assert "The rehearsal in the world models chose" in capsys.readouterr().out
    record = json.loads((tmp_path / "rehearsal.json").read_text())
    assert list(record["others"]) == list(record["other_networks"]) == [str(trained)]
    assert record["others"][str(trained)] == record["episodes"]  # the same model twice
    assert cli.main([*rehearse, "--steps", "3", "--again"]) == 0
    capsys.readouterr()
    arguments = ["eval", str(trained), "--out", str(tmp_path), "--rehearse", "--episodes", "2", "--no-video"]
    assert cli.main(arguments) == 0
    assert "The rehearsal in the world model chose" in capsys.readouterr().out
    assert read_evaluation(tmp_path)["rehearsal"]["choice"] == record["choice"]
    assert cli.main([*arguments, "--mpc.lr", "0.1"]) == cli.USAGE_ERROR
    assert "jacrec rehearse RUN --candidates" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "content", "message"),
    [
        (("h4",), None, "expected some of h3, h3-large, h5 or a YAML file"),
        (("none.yaml",), None, "got 'none.yaml'"),
        (("h3", "h3"), None, "each name once, got h3 twice"),
        (("mine.yaml",), "x: {horizn: 3}", r"mine.yaml: x: unknown setting 'horizn'; did you mean 'horizon'"),
        (("mine.yaml",), "[1", "mine.yaml: expected YAML"),
        (("mine.yaml",), "- 1", "expected a mapping of settings"),
    ],
)
def test_named_candidates(names, content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content:
        (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        named_candidates(names)


def test_rehearsal_job_writes_the_same_record(trained, tmp_path):
    spec = {
        "name": "s",
        "contestants": {k: asdict(v) for k, v in MINE.items()} | {"best": {"rehearse": ["a", "b"]}},
        "tasks": {"hopper-random": {"data": "x.hdf5"}},
        "seeds": [0],
        "evaluation": {"episodes": 2},
        "rehearsal": asdict(SHORT),
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(spec))
    jobs = {job.id: job for job in study_jobs(read_spec(tmp_path / "study.yaml"), tmp_path)}
    cell = tmp_path / "cells" / "hopper-random" / "seed-0"
    cell.mkdir(parents=True)
    (cell / "run").symlink_to(trained)
    job = jobs["hopper-random/seed-0/rehearsals/best"]
    assert not job.done()
    note = job.perform(lambda share: None)
    assert job.done()
    assert job.seconds() > 0
    record = json.loads((cell / "rehearsals" / "best.json").read_text())
    assert note == f"chose {record['choice']}"
    assert (record["task"], record["seed"], record["contestant"]) == ("hopper-random", 0, "best")
    alone = make_rehearsal(load_run(trained), tmp_path, MINE, SHORT, PLAY)
    assert record["episodes"] == alone["episodes"]
    assert record["networks"] == alone["networks"]


def test_an_evaluation_of_the_other_kind_is_told_before_anything_is_rehearsed(trained, tmp_path, monkeypatch):
    plain = replace(CONFIG, rehearse=False, contestants=())
    evaluate(trained, plain, out=tmp_path, quiet=True)
    monkeypatch.setattr(evaluation, "make_rehearsal", None)
    with pytest.raises(ValueError, match=r"evaluation.json: .*--out .*rehearsed\).*--again"):
        evaluate(trained, CONFIG, out=tmp_path, quiet=True)
    run = replace(load_run(trained), path=tmp_path)
    write_choice(tmp_path, run, "a")
    record = evaluate(run, replace(CONFIG, contestants=()), out=tmp_path / "rehearsed", quiet=True)
    assert record["rehearsal"]["choice"] == "a"  # the run's own
    assert not (tmp_path / "rehearsed" / "rehearsal.json").exists()
    with pytest.raises(ValueError, match=r"evaluation.json: .*--out .*plain\).*--again"):
        evaluate(run, plain, out=tmp_path / "rehearsed", quiet=True)
