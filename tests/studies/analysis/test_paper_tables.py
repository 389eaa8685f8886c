"""The paper's tables and figures next to the results of a synthetic study."""

import csv

import numpy as np
import pytest

from jacrec.studies.analysis.paper_figures import paper_figure
from jacrec.studies.analysis.paper_tables import table
from jacrec.studies.analysis.paper_values import is_d4rl, paper_table, paper_tables, row_of
from jacrec.studies.analysis.read import read_study
from tests.study_folder import constant_gains, fill, write_study


def test_paper_tables_equal_the_printed_ones():
    tables = paper_tables()
    assert [len(t.rows) for t in tables.values()] == [18, 6, 18, 18, 9]
    assert all(len(row) == len(t.columns) == len(t.average) for t in tables.values() for row in t.rows.values())
    assert tables[1].cell("hopper-medium", "MPCwDWM") == (103.38, 0.35)
    assert tables[2].cell("antmaze-large-play", "ReBRAC") == (60.4, 26.1)
    assert tables[3].cell("walker2d-expert", "MPCwDWM") == (3.3412, 0.014321)
    assert tables[3].cell("halfcheetah-random", "MPCwDWM") == (0.2318, 0.00001)
    with pytest.raises(ValueError, match=r"table: .*1, 2, 3, 4, 5, got 6"):
        paper_table(6)


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("hopper-medium", "hopper-medium"),
        ("hopper_medium_replay-v2", "hopper-medium-replay"),
        ("hopper-medium-expert-like", "hopper-medium-expert"),
        ("hopper-mediumish", None),
        ("pointmaze-umaze", None),
    ],
)
def test_row_of_a_task(task, row):
    assert row_of(task, paper_table(1).rows) == row


def test_d4rl_is_recognised_by_file_name():
    assert is_d4rl("some/folder/hopper_medium_replay-v2.hdf5")
    assert not is_d4rl("data/hopper-medium-replay-like.hdf5")
    assert not is_d4rl("mujoco/hopper/medium-v0")


def test_table_1_has_the_papers_columns_and_ours(study):
    sheet = table(study, 1)
    rows = {row[0]: dict(zip(sheet.head, row, strict=True)) for row in sheet.rows}
    assert len(rows) == 20
    assert rows["hopper-medium"]["MPCwDWM"] == "103.38 ± 0.35"
    assert rows["hopper-medium"]["mpc (ours)"] == "45.5 ± 2.1"
    assert rows["hopper-medium"]["base (ours)"] == "41.5 ± 2.1"
    assert rows["hopper-medium"]["seeds × episodes"] == "2 × 4"
    assert set(list(rows["walker2d-expert"].values())[7:]) == {"–"}
    assert rows["average as printed"]["ReBRAC"] == "81.2"
    assert rows["average of the 2 measured"]["mpc (ours)"] == f"{np.mean([45.5, 52.5]):.1f}"
    assert rows["average of the 2 measured"]["ReBRAC"] == f"{np.mean([102.0, 51.0]):.1f}"
    assert "percent" in sheet.notes[0]
    assert "last evaluation" in sheet.notes[0]


def test_data_other_than_d4rls_are_marked(tmp_path):
    path = fill(write_study(tmp_path / "s", tasks=["hopper-medium-like"]), constant_gains)
    sheet = table(read_study(path), 1)
    assert [row[0] for row in sheet.rows if "like" in row[0]] == ["hopper-medium-like †"]
    assert sheet.notes[-1].startswith("† not one of D4RL's own files")
    errors = table(read_study(path), 3)
    assert [row[0] for row in errors.rows if "like" in row[0]] == [
        "hopper-medium-like †",
        "hopper-medium-like, deterministic †",
    ]
    assert errors.notes[-1] == sheet.notes[-1]


def test_tables_3_and_4_format_errors_as_the_paper(study):
    for number, shown in ((3, "0.1667 ± 0.000002"), (4, "0.1667 ± 0.0017")):
        rows = {row[0]: row for row in table(study, number).rows}
        assert rows["hopper-medium"][2] == shown
        assert rows["hopper-medium"][6] == "2"
        assert rows["walker2d-medium"][2:] == ["–"] * (len(rows["walker2d-medium"]) - 2)
    assert {row[0]: row for row in table(study, 3).rows}["hopper-medium"][-1] == "0.3333"  # of a state of 4 numbers


def test_figures_are_written_as_png_and_csv(study, tmp_path):
    for number in (2, 3):
        files = paper_figure(study, number, tmp_path)
        assert files is not None
        assert files[0].stat().st_size > 5000
        rows = list(csv.DictReader(files[1].read_text().splitlines()))
        assert len(rows) == 2 * 2 * 3 * (2 if number == 2 else 1)
        assert {row["update"] for row in rows} == {"20000", "40000", "60000"}
        assert float(rows[-1]["rmse"]) == pytest.approx(1 / 6)
    with pytest.raises(ValueError, match=r"figure: .*2, 3, got 4"):
        paper_figure(study, 4, tmp_path)


def test_additional_world_models_have_their_own_rows(study):
    assert "hopper-medium, deterministic" in [row[0] for row in table(study, 3).rows]
    assert "hopper-medium, deterministic" not in [row[0] for row in table(study, 4).rows]


def test_unfinished_trainings_are_listed_as_gaps(tmp_path):
    path = fill(write_study(tmp_path / "s", tasks=["hopper-medium"], seeds=[10]), constant_gains)
    (path / "cells/hopper-medium/seed-10/run/dynamics.safetensors").unlink()
    study = read_study(path)
    assert {row[0]: row for row in table(study, 3).rows}["hopper-medium, deterministic"][2] == "0.1667 ± 0.000002"
    assert "hopper-medium" not in {row[0] for row in table(study, 3).rows if row[2] != "–"}
    assert [(g.what, g.state, g.reason) for g in study.gaps] == [("run", "missing", "not trained yet: dynamics")]
