"""Rehearsals in reports: choices, accuracy of the predicted gains, and regret."""

import csv
import json
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jacrec.evaluation.statistics import ranks, spearman
from jacrec.studies.analysis import study_tables
from jacrec.studies.analysis.factors import centre_of, differ_in_several, leave_one_seed_out
from jacrec.studies.analysis.read import read_study
from jacrec.studies.analysis.rehearsal_accuracy import (
    ALLOWED,
    DECLINED,
    UNSURE,
    agreement,
    choices,
    findings,
    predicted_gains,
    predicted_gains_record,
    regret,
    rehearsal_note,
)
from jacrec.studies.analysis.settings import (
    candidates_of,
    control_of,
    describe,
    main_contestant,
    rehearsing_contestants,
    settings_of,
    without_world_model,
)
from jacrec.studies.analysis.study_plots import predicted_against_real
from jacrec.studies.analysis.study_report import write_study_report
from jacrec.studies.analysis.videos import record_study_videos
from tests.conftest import property_cases
from tests.study_folder import (
    IMAGINED,
    REHEARSING,
    TASKS,
    write_failure,
    write_play,
    write_rehearsal,
    write_rehearsed,
    write_study,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_rehearsed(tmp_path_factory.mktemp("rehearsals") / "study")


@pytest.fixture
def study(folder):
    return read_study(folder)


def rows_of(sheet):
    return {row[0]: dict(zip(sheet.head, row, strict=True)) for row in sheet.rows}


def test_controls_of_contestants_that_rehearse(study):
    assert (main_contestant(study), rehearsing_contestants(study)) == ("mpc", ["mpc", "h0-rehearsed"])
    assert candidates_of(study, "mpc") == ("h3", "h8")
    assert candidates_of(study, "h3") == candidates_of(study, "base") == ()
    assert settings_of(study, "mpc") == {}
    assert without_world_model(study) == ["h0", "h0-fast", "h0-rehearsed"]
    assert control_of(study, "mpc") == ("h0-rehearsed", ["candidates"])
    assert control_of(study, "h3") == ("h0", [])
    assert control_of(study, "h0-rehearsed") is control_of(study, "h0") is None
    assert describe(study, "mpc") == describe(study, "mpc", "h3") == "rehearsed: h3, h8 or base, chosen cell by cell"
    assert "H 3" in describe(study, "h3", "mpc")
    assert rehearsal_note(study, "h0-rehearsed").startswith("h0-rehearsed acts without a world model")
    assert rehearsal_note(study, "mpc") == rehearsal_note(study, "h0") == rehearsal_note(study, "base") == ""


def test_a_fixed_control_replaces_a_missing_rehearsed_one(tmp_path):
    contestants = {k: REHEARSING[k] for k in ("h0", "h3", "h8", "mpc")}
    study = read_study(write_study(tmp_path / "s", TASKS, contestants=contestants))
    assert control_of(study, "mpc") == ("h0", ["candidates"])


def test_contestants_that_rehearse_belong_to_no_factor(study):
    assert centre_of(study, "mpc") == "h3"
    assert set(differ_in_several(study, "h3")) >= {"mpc", "h0-rehearsed"}
    assert {c.chosen for c in leave_one_seed_out(study)} == {"h3"}


def test_choices_are_counted(study):
    rows = rows_of(choices(study, "mpc"))
    assert list(rows) == [*TASKS, "all"]
    assert rows["all"] == {"task": "all", "base": "0", "h3": "4", "h8": "0", "training seeds": "4"}
    assert rows_of(choices(study, "h0-rehearsed"))["hopper-medium"]["h0"] == "2"


def test_imagined_and_real_gains_are_in_points(study):
    found = predicted_gains(study, "mpc")
    assert len(found) == 2 * 2 * 2
    first = found[0]
    # a point is a hundredth of 1000
    assert (first.task, first.seed, first.candidate, first.imagined) == ("hopper-medium", 10, "h3", pytest.approx(2.0))
    assert (first.real, first.standard_error, first.verdict, first.chosen) == (pytest.approx(5.0), 0.0, ALLOWED, True)
    assert {x.verdict for x in found if x.candidate == "h8"} == {DECLINED}
    assert {x.verdict for x in predicted_gains(study, "h0-rehearsed") if x.candidate == "h0-fast"} == {UNSURE}
    rows = rows_of(agreement(study, "mpc"))
    assert list(rows[ALLOWED].values())[1:] == ["4", "4", "0", "0", "+5.0", "+5.0", "+5.0"]
    assert list(rows[UNSURE].values())[1:] == ["0", "0", "0", "0", "–", "–", "–"]
    assert list(rows[DECLINED].values())[1:6] == ["4", "0", "0", "4", "-4.0"]
    assert rows_of(agreement(study, "h0-rehearsed"))[UNSURE]["= 0"] == "4"
    lines = " ".join(findings(study, "mpc"))
    assert "in 8 of 8 candidates × cells (100%" in lines
    assert "over all of them: +1.00" in lines
    assert "mean over 4 cells: +1.00" in lines
    assert "in 4 of 8" in findings(study, "h0-rehearsed")[0]
    assert json.loads(json.dumps(predicted_gains_record(study)))["mpc"][0]["real"] == pytest.approx(5.0)


def test_regret_by_hand(tmp_path):
    """On one task the rehearsal is misled and chooses h8, which loses."""
    misled = lambda task, seed, name: -IMAGINED[name] if task == TASKS[1] else IMAGINED[name]  # noqa: E731
    study = read_study(write_rehearsed(tmp_path / "s", imagined=misled))
    rows = rows_of(regret(study, "mpc"))
    assert [rows["mpc"][k] for k in ("gain over base", "regret", "worst task", "cells below -1")] == [
        "+0.5",
        "4.5",
        "-4.0",
        "2 of 4",
    ]
    assert [rows["always h3"][k] for k in ("gain over base", "regret", "worst task")] == ["+5.0", "0.0", "+5.0"]
    assert (rows["always base"]["gain over base"], rows["always base"]["regret"]) == ("+0.0", "5.0")
    assert rows["always h8"]["cells below -1"] == "4 of 4"
    assert rows["always h3"]["mpc − this"].startswith("-4.5 [")
    assert rows["best in hindsight"]["gain over base"] == "+5.0"
    assert "in 4 of 8" in findings(study, "mpc")[0]
    assert rows_of(choices(study, "mpc"))["all"]["h8"] == "2"


def test_the_report_shows_rehearsals(folder, study):
    path = write_study_report(study)
    text = path.read_text()
    assert "## Rehearsals: choices and accuracy" in text
    assert "What the world model adds: mpc gains over h0-rehearsed: +4.0" in text
    assert "* h0-rehearsed acts without a world model, but the rehearsal that chooses it uses one." in text
    for name in ("mpc", "h0-rehearsed"):
        assert (path.parent / f"plots/rehearsal_{name}.png").read_bytes().startswith(b"\x89PNG")
        table = list(csv.reader((path.parent / f"tables/rehearsal_{name}_regret.csv").read_text().splitlines()))
        assert table[1][0] == name
    row = next(row for row in study_tables.contestants(study).rows if row[0] == "mpc")
    assert row[1].startswith("rehearsed: h3, h8")
    assert "Settings are those" not in study_tables.contestants(study).notes[0]


def test_incomparable_results_are_listed_and_excluded(tmp_path):
    path = write_rehearsed(tmp_path / "s")
    cells = path / "cells" / TASKS[0]
    write_rehearsal(path, TASKS[0], 10, "mpc", {"h3": 20.0, "h8": 0.0}, networks={"actor": "other"})
    (cells / "seed-11" / "rehearsals" / "mpc.json").write_text("{")
    (cells / "seed-11" / "rehearsals" / "h0-rehearsed.json").unlink()
    write_failure(cells / "seed-11" / "rehearsals" / "h0-rehearsed.failed.json", "MemoryError: no room")
    write_play(path, TASKS[1], 10, "mpc", [50.0] * 4, choice="h0")
    write_play(path, TASKS[1], 11, "mpc", [50.0] * 4, choice="h3", controller={"horizon": 5})
    study = read_study(path)
    gaps = {(g.task, g.seed, g.what): (g.state, g.reason) for g in study.gaps if "run" not in g.what and "model" not in g.what}
    assert gaps.pop((TASKS[0], 10, "rehearsal mpc")) == (
        "not comparable",
        "rehearsed with other networks than the base policy played with",
    )
    assert gaps.pop((TASKS[0], 11, "rehearsal mpc"))[0] == "failed"
    assert gaps.pop((TASKS[0], 11, "rehearsal h0-rehearsed")) == ("failed", "MemoryError: no room")
    assert "chose 'h0'" in gaps.pop((TASKS[1], 10, "play mpc"))[1]
    assert gaps.pop((TASKS[1], 11, "play mpc"))[1].endswith("study.yaml's: horizon")
    assert gaps == {}
    assert {x.task for x in predicted_gains(study, "mpc")} == {TASKS[1]}
    assert rows_of(choices(study, "mpc"))[TASKS[0]]["training seeds"] == "0"


def test_before_any_rehearsal(tmp_path):
    path = write_study(tmp_path / "s", TASKS, contestants=REHEARSING)
    write_play(path, TASKS[0], 10, "base", [40.0] * 4)
    study = read_study(path)
    assert agreement(study, "mpc") is regret(study, "mpc") is None
    assert findings(study, "mpc") == predicted_gains(study, "mpc") == []
    assert not predicted_against_real(study, "mpc", tmp_path / "x.png")
    assert "## Rehearsals" not in write_study_report(study).read_text()


def test_video_shows_the_chosen_candidate(study, monkeypatch, tmp_path):
    from jacrec.evaluation.rendering import Rendering
    from jacrec.evaluation.video import Video

    calls = []

    def record(run, config, folder, **options):
        calls.append((config.mpc.horizon, options["label"]))
        return Video(folder / "x.gif", "")

    monkeypatch.setattr("jacrec.studies.analysis.videos.probe", lambda: Rendering(True, "egl", ""))
    monkeypatch.setattr("jacrec.studies.analysis.videos.load_run", lambda run: run)
    monkeypatch.setattr("jacrec.studies.analysis.videos.record_video", record)
    monkeypatch.setattr("jacrec.studies.analysis.videos.best_contestant", lambda study, task: "mpc")
    assert record_study_videos(study, tmp_path)["hopper-medium"] == "x.gif"
    assert calls[0] == (3, "mpc")


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=1, max_size=12))
@property_cases(0.02, 20)
def test_rank_correlation_by_definition(pairs):
    x, y = (np.array(v, float) for v in zip(*pairs, strict=True))
    # rank: number of smaller values plus half of the number of other equal values
    by_hand = [np.array([(v < u).sum() + ((v == u).sum() - 1) / 2 for u in v]) for v in (x, y)]
    assert ranks(x) == pytest.approx(by_hand[0])
    found = spearman(x, y)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert found is None
        return
    assert found == pytest.approx(np.corrcoef(*by_hand)[0, 1])
    assert spearman(np.exp(x), y**3) == pytest.approx(found)
    assert spearman(-x, y) == pytest.approx(-found)
    if find_spec("scipy"):
        from scipy.stats import spearmanr  # pyright: ignore[reportMissingImports]

        assert found == pytest.approx(spearmanr(x, y).statistic)


def test_rank_correlation_requires_equal_lengths():
    with pytest.raises(ValueError, match=r"rank correlation: .*got 2 and 1"):
        spearman([1, 2], [1])
