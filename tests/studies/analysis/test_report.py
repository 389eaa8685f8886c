"""The report of a whole study, on folders made of numbers: complete, with gaps, and with nothing comparable."""

import csv
import json
import re

import numpy as np
import pytest
import yaml

from jacrec import cli
from jacrec.evaluation.rendering import Rendering
from jacrec.evaluation.video import Film
from jacrec.studies.analysis import overview
from jacrec.studies.analysis.factors import centre_of, chosen_without_looking, elsewhere, factors
from jacrec.studies.analysis.figures import error_figure
from jacrec.studies.analysis.films import best_contestant, film_study
from jacrec.studies.analysis.gains import aggregate, average_gain, cost, paired
from jacrec.studies.analysis.paper import is_d4rl, paper_table, paper_tables, row_of
from jacrec.studies.analysis.read import is_study, read_study
from jacrec.studies.analysis.report import write_study_report
from jacrec.studies.analysis.settings import control_of, differing, main_contestant, settings_of
from jacrec.studies.analysis.tables import table
from tests.study_folder import fill, write_failure, write_play, write_run, write_study

GAIN = {"base": 0.0, "h0": 1.0, "mpc": 4.0, "h1": 2.0, "slow": -3.0, "plain": 3.0}


def exact(task, seed, contestant):
    """Scores that differ between tasks and seeds, gains that do not."""
    return 40.0 + 3 * (seed - 10) + 7 * task.startswith("half") + GAIN[contestant]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished study in which every contestant gains the same everywhere."""
    return fill(write_study(tmp_path_factory.mktemp("study") / "exact"), exact)


@pytest.fixture
def study(folder):
    return read_study(folder)


@pytest.fixture
def broken(tmp_path):
    """A study with a failed run, a failed play, a missing one, an unreadable one and one of other networks."""
    path = fill(write_study(tmp_path / "broken", seeds=(10, 11, 12)), exact)
    cells = path / "cells"
    plays = cells / "hopper-medium" / "seed-10" / "plays"
    (plays / "mpc.json").unlink()
    write_failure(plays / "mpc.failed.json", "FloatingPointError: objective is not finite\nmore", attempts=2)
    (plays / "h1.json").unlink()
    (plays / "slow.json").write_text("{")
    write_play(path, "hopper-medium", 10, "plain", [50.0] * 4, networks={"actor": "other"})
    for play in (cells / "hopper-medium" / "seed-12" / "plays").iterdir():
        play.unlink()
    write_failure(cells / "hopper-medium" / "seed-12" / "run.failed.json", "MemoryError: no room")
    write_failure(cells / "hopper-medium" / "seed-11" / "models" / "deterministic.failed.json", "ValueError: diverged")
    return path


def test_gains_are_paired_by_training_seed_and_environment_seed(study):
    gain = paired(study, "hopper-medium", "mpc", "base")
    assert gain is not None
    assert (gain.seeds, gain.episodes, gain.unit) == ((10, 11), 8, "score")
    assert (gain.estimate.mean, gain.estimate.low, gain.estimate.high) == pytest.approx((4.0, 4.0, 4.0))
    whole = average_gain(study, "mpc", "h0")
    assert whole is not None
    assert (whole.estimate.mean, whole.t.low, whole.t.high) == pytest.approx((3.0, 3.0, 3.0))


def test_pairing_does_not_care_for_the_order_of_episodes(tmp_path):
    path = write_study(tmp_path / "s", tasks=["hopper-medium"], seeds=[10], contestants={"mpc": {}})
    scores = np.array([10.0, 20.0, 90.0, 40.0])
    write_play(path, "hopper-medium", 10, "base", scores)
    order = [2, 0, 3, 1]
    write_play(path, "hopper-medium", 10, "mpc", (scores + np.array([1, 2, 3, 4]))[order], seeds=[42000 + i for i in order])
    gain = paired(read_study(path), "hopper-medium", "mpc", "base")
    assert gain is not None
    assert gain.runs[0] == pytest.approx([1, 2, 3, 4])


def test_only_shared_environment_seeds_are_paired(tmp_path):
    path = write_study(tmp_path / "s", tasks=["hopper-medium"], seeds=[10], contestants={"mpc": {}, "alone": {"lr": 1e-3}})
    write_play(path, "hopper-medium", 10, "base", [1.0, 2.0, 3.0])
    write_play(path, "hopper-medium", 10, "mpc", [5.0, 9.0])
    write_play(path, "hopper-medium", 10, "alone", [5.0], seeds=[7])
    study = read_study(path)
    gain = paired(study, "hopper-medium", "mpc", "base")
    assert gain is not None
    assert gain.runs[0] == pytest.approx([4.0, 7.0])
    gap = next(g for g in study.gaps if g.what == "play alone")
    assert gap.state == "not comparable"
    assert "environment seeds" in gap.reason


def test_aggregates(study):
    whole = aggregate(study, "mpc")
    assert whole is not None
    assert whole.mean.mean == pytest.approx(np.mean([44, 47, 51, 54]))
    assert whole.iqm.mean == pytest.approx(np.mean([47, 51]))
    assert whole.improvement is not None
    # per task 44, 47 against 40, 43
    assert whole.improvement.mean == pytest.approx(1.0)
    beside = aggregate(study, "h1")
    assert beside is not None
    assert beside.improvement is not None
    # 42, 45 against 40, 43
    assert beside.improvement.mean == pytest.approx(0.75)
    assert cost(study, "base") == pytest.approx((0.025, 0.025, 0.025))


def test_the_control_is_the_nearest_contestant_without_a_world_model(study):
    assert main_contestant(study) == "mpc"
    assert control_of(study, "mpc") == ("h0", [])
    assert control_of(study, "slow") == ("h0", ["lr"])
    assert control_of(study, "plain") == ("h0", [])
    assert control_of(study, "h0") is None
    assert control_of(study, "base") is None
    assert differing(settings_of(study, "mpc"), settings_of(study, "h0")) == ["horizon"]
    with pytest.raises(ValueError, match="expected one of h0, mpc, h1, slow, plain, got 'base'"):
        main_contestant(study, "base")


def test_factors_differ_in_one_thing(study):
    found = factors(study, "mpc")
    assert {name: [(x.value, x.contestant) for x in levels] for name, levels in found.items()} == {
        "H": [("0", "h0"), ("1", "h1"), ("3", "mpc")],
        "lr": [("1e-05", "slow"), ("5e-05", "mpc")],
        "world model": [("default (diffusion, K = 5)", "mpc"), ("deterministic (deterministic)", "plain")],
    }
    assert elsewhere(study, "mpc") == []
    assert centre_of(study, "mpc") == centre_of(study, "slow") == "mpc"
    assert factors(study, "slow")["lr"][0].centre
    # without a world model nothing tells mpc and plain apart
    assert sum(map(len, factors(study, "h0").values())) > 2
    assert centre_of(study, "h1") == "mpc"


def test_a_choice_is_judged_on_the_seed_that_did_not_make_it(tmp_path):
    path = write_study(tmp_path / "s", seeds=(10, 11, 12), contestants={"mpc": {}, "other": {"lr": 1e-3}})
    # each contestant is best on the seeds on which it is not judged
    values = {"base": [0, 0, 0], "mpc": [9, 0, 0], "other": [0, 4, 4]}
    study = read_study(fill(path, lambda task, seed, name: float(values[name][seed - 10])))
    choices = chosen_without_looking(study)
    assert [(c.seed, c.chosen, c.gain) for c in choices] == [(10, "other", 0.0), (11, "mpc", 0.0), (12, "mpc", 0.0)]
    assert [c.gain for c in chosen_without_looking(study, per_task=True)] == [0.0, 0.0, 0.0]


def test_paper_tables_are_the_printed_ones():
    tables = paper_tables()
    assert [len(t.rows) for t in tables.values()] == [18, 6, 18, 18, 9]
    assert all(len(row) == len(t.columns) == len(t.average) for t in tables.values() for row in t.rows.values())
    assert tables[1].cell("hopper-medium", "MPCwDWM") == (103.38, 0.35)
    assert tables[2].cell("antmaze-large-play", "ReBRAC") == (60.4, 26.1)
    assert tables[3].cell("walker2d-expert", "MPCwDWM") == (3.3412, 0.014321)
    assert tables[3].cell("halfcheetah-random", "MPCwDWM") == (0.2318, 0.00001)
    with pytest.raises(ValueError, match="table: expected one of 1, 2, 3, 4, 5, got 6"):
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
def test_tasks_find_their_row(task, row):
    assert row_of(task, paper_table(1).rows) == row


def test_d4rl_is_known_by_its_files():
    assert is_d4rl("some/folder/hopper_medium_replay-v2.hdf5")
    assert not is_d4rl("data/hopper-medium-replay-like.hdf5")
    assert not is_d4rl("mujoco/hopper/medium-v0")


def test_table_1_holds_the_papers_columns_and_ours(study):
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


def test_other_data_are_marked(tmp_path):
    path = fill(write_study(tmp_path / "s", tasks=["hopper-medium-like"]), exact)
    sheet = table(read_study(path), 1)
    assert [row[0] for row in sheet.rows if "like" in row[0]] == ["hopper-medium-like †"]
    assert sheet.notes[-1].startswith("† not one of D4RL's own files")
    errors = table(read_study(path), 3)
    assert [row[0] for row in errors.rows if "like" in row[0]] == [
        "hopper-medium-like †",
        "hopper-medium-like, deterministic †",
    ]
    assert errors.notes[-1] == sheet.notes[-1]


def test_tables_3_and_4_show_errors_as_the_paper_does(study):
    for number, shown in ((3, "0.1667 ± 0.000002"), (4, "0.1667 ± 0.0017")):
        rows = {row[0]: row for row in table(study, number).rows}
        assert rows["hopper-medium"][2] == shown
        assert rows["hopper-medium"][6] == "2"
        assert rows["walker2d-medium"][2:] == ["–"] * (len(rows["walker2d-medium"]) - 2)
    assert {row[0]: row for row in table(study, 3).rows}["hopper-medium"][-1] == "0.3333"  # of a state of 4 numbers


def test_figures_are_drawn_and_their_numbers_kept(study, tmp_path):
    for number in (2, 3):
        made = error_figure(study, number, tmp_path)
        assert made is not None
        assert made[0].stat().st_size > 5000
        rows = list(csv.DictReader(made[1].read_text().splitlines()))
        assert len(rows) == 2 * 2 * 3 * (2 if number == 2 else 1)
        assert {row["update"] for row in rows} == {"20000", "40000", "60000"}
        assert float(rows[-1]["rmse"]) == pytest.approx(1 / 6)
    with pytest.raises(ValueError, match="figure: expected one of 2, 3"):
        error_figure(study, 4, tmp_path)


def test_further_world_models_have_rows_of_their_own(study):
    assert "hopper-medium, deterministic" in [row[0] for row in table(study, 3).rows]
    assert "hopper-medium, deterministic" not in [row[0] for row in table(study, 4).rows]


def test_unfinished_trainings_are_in_no_table_and_listed(tmp_path):
    path = fill(write_study(tmp_path / "s", tasks=["hopper-medium"], seeds=[10]), exact)
    (path / "cells/hopper-medium/seed-10/run/dynamics.safetensors").unlink()
    study = read_study(path)
    assert {row[0]: row for row in table(study, 3).rows}["hopper-medium, deterministic"][2] == "0.1667 ± 0.000002"
    assert "hopper-medium" not in {row[0] for row in table(study, 3).rows if row[2] != "–"}
    assert [(g.what, g.state, g.reason) for g in study.gaps] == [("run", "missing", "not trained yet: dynamics")]


def test_a_study_of_models_alone_has_a_report(tmp_path):
    path = write_study(tmp_path / "s", contestants={})
    spec = yaml.safe_load((path / "study.yaml").read_text())
    (path / "study.yaml").write_text(yaml.safe_dump(spec | {"stages": ["dynamics"], "models": {}}))
    for task in spec["tasks"]:
        for seed in spec["seeds"]:
            write_run(path / "cells" / task / f"seed-{seed}" / "run", task, stages=("dynamics",))
    study = read_study(path)
    assert study.gaps == []
    text = write_study_report(study).read_text()
    assert "of which dynamics alone is trained; nobody plays" in text
    assert "| hopper-medium | 0.0784 ± 0.001281 | 0.1667 ± 0.000002 |" in text
    assert "![Figure 2](plots/figure_2.png)" in text
    assert "Figure 3](" not in text
    assert "## Scores" not in text


def test_the_base_policy_alone_has_a_report(tmp_path):
    path = fill(write_study(tmp_path / "s", contestants={}), exact)
    text = write_study_report(read_study(path)).read_text()
    assert "| hopper-medium | 41.5 ± 2.1 | 415 ± 21 | 2 × 4 |" in text
    assert "## Paired gains" not in text


def test_the_report_says_what_it_is_about(folder):
    path = write_study_report(read_study(folder))
    text = path.read_text()
    assert path == folder / "report" / "report.md"
    assert "2 tasks × 2 training seeds (10, 11) × 6 contestants: 24 evaluations, all of them finished" in text
    assert "mpc gains over the base policy: +4.0 [+4.0, +4.0] points of normalised score on average over 2 tasks" in text
    assert "No task of 2 is worse than -1 beyond noise. Shown to be no worse: 2 of 2." in text
    assert "What the world model adds: mpc gains over h0: +3.0 [+3.0, +3.0]" in text
    assert "With 2 training seeds (fewer than 10)" in text
    assert "Missing" not in text
    for said in ("percent", "return", "last evaluation", "jacrec 0.0", "cores 2", "Hopper-v4"):
        assert said in text
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (path.parent / link).exists(), link
    gains = json.loads((path.parent / "gains.json").read_text())["gains"]
    assert gains["slow"]["base"]["average"]["worse_than_minus_1"] == ["hopper-medium", "halfcheetah-medium-replay"]
    assert gains["mpc"]["h0"]["tasks"]["hopper-medium"]["per_seed"] == pytest.approx([3.0, 3.0])


def test_harm_beyond_noise_is_named(study):
    slow = average_gain(study, "slow")
    assert slow is not None
    assert overview.harm(slow).startswith("Worse than -1 beyond noise: hopper-medium -3.0 [-3.0, -3.0], halfcheetah")
    assert slow.worst.estimate.mean == pytest.approx(-3.0)


def test_ten_seeds_need_no_warning(tmp_path):
    path = fill(write_study(tmp_path / "s", tasks=["hopper-medium"], seeds=range(10, 20)), exact)
    assert overview.few_seeds(read_study(path)) == ""


def test_gaps_are_listed_and_in_no_number(broken):
    study = read_study(broken)
    found = {(g.task, g.seed, g.what): (g.state, g.reason) for g in study.gaps}
    hopper = "hopper-medium"
    assert found.pop((hopper, 10, "play mpc")) == ("failed", "FloatingPointError: objective is not finite (2 attempts)")
    assert found.pop((hopper, 10, "play h1"))[0] == "missing"
    assert found.pop((hopper, 10, "play slow"))[0] == "failed"
    state, reason = found.pop((hopper, 10, "play plain"))
    assert state == "not comparable"
    assert "actor network" in reason
    assert found.pop((hopper, 12, "run")) == ("failed", "MemoryError: no room")
    assert found.pop((hopper, 11, "model deterministic")) == ("failed", "ValueError: diverged")
    assert sorted(found) == sorted((hopper, 12, f"play {c}") for c in study.contestants)
    gain = paired(study, hopper, "mpc", "base")
    assert gain is not None
    assert gain.seeds == (11,)
    text = write_study_report(study).read_text()
    assert "10 of them without a result (listed below)" in text
    assert "## Missing, failed or not comparable" in text
    for said in ("objective is not finite (2 attempts)", "MemoryError: no room", "diverged", "actor network", "cannot be read"):
        assert said in text


def test_a_task_that_nobody_played_is_named_where_averages_are(tmp_path):
    path = fill(write_study(tmp_path / "s"), exact)
    for play in path.glob("cells/hopper-medium/*/plays/mpc.json"):
        play.unlink()
    study = read_study(path)
    gain = average_gain(study, "mpc")
    assert gain is not None
    assert gain.absent == ("hopper-medium",)
    assert overview.harm(gain).endswith("Not measured: hopper-medium.")
    assert {row[0]: row for row in overview.scores(study, ["base", "mpc"]).rows}["average"][3] == "–"


def test_returns_stand_where_there_is_no_reference(tmp_path):
    path = fill(write_study(tmp_path / "s", tasks=["hopper-medium"]), exact, scored=False)
    study = read_study(path)
    gain = paired(study, "hopper-medium", "mpc", "base")
    assert gain is not None
    assert (gain.unit, gain.estimate.mean) == ("return", pytest.approx(40.0))
    assert average_gain(study, "mpc") is None
    assert "hopper-medium (return)" in write_study_report(study).read_text()
    assert set(table(study, 1).rows[6][7:]) == {"–"}


def test_settings_of_a_task_are_told(tmp_path):
    path = write_study(tmp_path / "s")
    spec = yaml.safe_load((path / "study.yaml").read_text())
    spec["tasks"]["hopper-medium"]["contestants"] = {"mpc": {"lr": 0.5}}
    (path / "study.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    study = read_study(fill(path, exact))
    assert study.gaps == []
    row = next(row for row in overview.contestants(study).rows if row[0] == "mpc")
    assert row[1].endswith("; set differently for hopper-medium")


def test_best_contestant_and_films_where_nothing_can_be_shown(study, monkeypatch):
    assert best_contestant(study, "hopper-medium") == "mpc"
    monkeypatch.setattr("jacrec.studies.analysis.films.probe", lambda: Rendering(False, "egl", "no backend"))
    films = film_study(study, study.path / "report")
    assert set(films) == set(study.tasks)
    assert all(text.startswith("no film: no backend; on Debian") for text in films.values())
    text = write_study_report(study, films=films).read_text()
    assert "* hopper-medium: no film: no backend" in text


def test_films_show_the_best_contestant_in_its_own_world_model(tmp_path, monkeypatch):
    path = fill(write_study(tmp_path / "s"), lambda task, seed, name: 9.0 if name == "plain" else exact(task, seed, name) - 40)
    asked = []

    def record(run, config, folder, **options):
        asked.append((run, config.mpc.horizon, config.episodes, folder, options))
        return Film(folder / f"{options['stem']}.gif", "")

    monkeypatch.setattr("jacrec.studies.analysis.films.probe", lambda: Rendering(True, "egl", ""))
    monkeypatch.setattr("jacrec.studies.analysis.films.load_run", lambda run: run)
    monkeypatch.setattr("jacrec.studies.analysis.films.record_video", record)
    study = read_study(path)
    films = film_study(study, tmp_path)
    assert films["hopper-medium"] == "hopper-medium-plain-seed-10.gif"
    run, horizon, episodes, folder, options = asked[0]
    cell = path / "cells" / "hopper-medium" / "seed-10"
    assert (run, horizon, episodes, folder) == (cell / "run", 3, 10, tmp_path)
    assert (options["label"], options["dynamics"]) == ("plain", cell / "models" / "deterministic")
    assert films["halfcheetah-medium-replay"].startswith("halfcheetah-medium-replay-mpc-")
    assert asked[1][-1]["dynamics"] is None
    text = write_study_report(study, films=films).read_text()
    assert "* hopper-medium: [hopper-medium-plain-seed-10.gif](hopper-medium-plain-seed-10.gif)" in text


def test_the_command_prints_a_table_or_writes_the_report(folder, capsys):
    assert is_study(folder)
    assert cli.main(["report", str(folder), "--table", "5"]) == 0
    assert capsys.readouterr().out.startswith("| task | DT | TT | MOPO |")
    assert cli.main(["report", str(folder), "--figure", "2"]) == 0
    assert "figure_2.png" in capsys.readouterr().out
    assert cli.main(["report", str(folder), "--contestant", "slow"]) == 0
    assert capsys.readouterr().out == f"report: {folder / 'report' / 'report.md'}\n"
    assert "slow loses against the base policy" in (folder / "report" / "report.md").read_text()
    assert cli.main(["report", str(folder), "--table", "6"]) == cli.USAGE_ERROR
    assert "expected one of 1, 2, 3, 4, 5, got 6" in capsys.readouterr().err


def test_options_of_studies_are_refused_for_runs_and_the_other_way_round(folder, tmp_path, capsys):
    assert cli.main(["report", str(tmp_path), "--table", "1"]) == cli.USAGE_ERROR
    assert "expected a study's folder (with study.yaml) for --table" in capsys.readouterr().err
    assert cli.main(["report", str(folder), "--evaluation", str(tmp_path)]) == cli.USAGE_ERROR
    assert "expected no --evaluation for a study" in capsys.readouterr().err


def test_a_study_that_nobody_played_has_no_report(tmp_path):
    path = write_study(tmp_path / "s")
    with pytest.raises(ValueError, match=r"expected something finished, got neither .* go on with `jacrec sweep"):
        write_study_report(read_study(path))
    with pytest.raises(FileNotFoundError, match="no study at"):
        read_study(tmp_path)
