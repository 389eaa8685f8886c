"""Damaged evaluations and rehearsals are one sentence; a changed setting is told alone; one evaluation at a time."""

import json
import random
import re
import shutil
from dataclasses import replace

import pytest

import jacrec
from jacrec import cli
from jacrec.control.controller import MPCConfig
from jacrec.evaluation.config import EvalConfig
from jacrec.evaluation.evaluate import FILE, evaluate, read_evaluation
from jacrec.evaluation.run_report import write_run_report
from jacrec.evaluation.versions import versions
from jacrec.util import locks

CONFIG = EvalConfig(episodes=2, contestants=("mpc",), mpc=MPCConfig(horizon=1, particles=2), probe_every=5)


@pytest.fixture(scope="module")
def played(trained, tmp_path_factory):
    """A folder with an evaluation."""
    folder = tmp_path_factory.mktemp("played")
    evaluate(trained, CONFIG, out=folder, quiet=True)
    return folder


def mutated(record, rng):
    """A record with one value of another type, without one entry, or with one list of another length."""
    record = json.loads(json.dumps(record))
    here, key = record, rng.choice(list(record))
    while isinstance(here[key], dict | list) and here[key] and rng.random() < 0.8:
        here = here[key]
        key = rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
    if rng.random() < 0.3:
        del here[key]
    else:
        here[key] = rng.choice([None, "text", 3, -1.5, [], {}, [1], {"a": 1}, True])
    return record


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"settings": {}}', None])
def test_half_an_evaluation_is_told(trained, played, tmp_path, capsys, content):
    raw = (played / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(raw[: len(raw) // 2] if content is None else content)
    for call in (lambda: read_evaluation(tmp_path), lambda: evaluate(trained, CONFIG, out=tmp_path, quiet=True)):
        with pytest.raises(
            ValueError, match=r"evaluation\.json: expected .*; correct it, or play again: jacrec eval RUN --again"
        ):
            call()
    assert cli.main(["report", str(trained), "--evaluation", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"jacrec: {tmp_path / FILE}: ")


def test_whatever_a_record_holds_it_is_read_or_told(trained, played, tmp_path, monkeypatch):
    """Reports are written from what is left of a record, or an error names its file."""
    monkeypatch.setattr("jacrec.evaluation.run_plots.scores", lambda *args, **options: None)  # the only slow part
    rng, record = random.Random(0), json.loads((played / FILE).read_text())
    told = 0
    for _ in range(60):
        (tmp_path / FILE).write_text(json.dumps(mutated(record, rng)))
        try:
            write_run_report(trained, tmp_path)
        except ValueError as error:
            found = str(error)
            told += 1
            if "finished episodes of the base policy" not in found:
                assert found.startswith(str(tmp_path / FILE)), found
    assert told > 15


def test_a_changed_setting_is_told_alone(trained, played, tmp_path):
    folder = shutil.copytree(played, tmp_path / "copy")
    with pytest.raises(ValueError, match=r"differs in settings\.mpc\.particles: 2 there, 4 here\. Write to") as error:
        evaluate(trained, replace(CONFIG, mpc=replace(CONFIG.mpc, particles=4)), out=folder, quiet=True)
    assert len(re.findall(" there, ", str(error.value))) == 1


def test_a_second_evaluation_into_the_same_folder_is_refused(trained, played):
    with (
        locks.locked(played / ".evaluation.lock", AssertionError()),
        pytest.raises(ValueError, match="expected no running evaluation there, got one"),
    ):
        evaluate(trained, CONFIG, out=played, quiet=True)


@pytest.mark.parametrize("content", ["", "[]", '{"choice": "a"}'])
def test_a_damaged_rehearsal_is_told(trained, tmp_path, content):
    (tmp_path / "rehearsal.json").write_text(content)
    with pytest.raises(ValueError, match=r"rehearsal\.json: expected .*rehearse again"):
        evaluate(trained, EvalConfig(episodes=2, contestants=("mpc",), rehearse=True), out=tmp_path, quiet=True)


def test_records_hold_the_version_that_runs_whatever_is_installed():
    assert versions()["jacrec"] == jacrec.__version__
