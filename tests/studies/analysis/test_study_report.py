"""The report of a whole study: complete, with gaps, and without comparable results."""

import json
import re

import pytest
import yaml

from jacrec import cli
from jacrec.evaluation.rendering import Rendering
from jacrec.evaluation.video import Video
from jacrec.studies.analysis import study_tables
from jacrec.studies.analysis.gains import average_gain, paired
from jacrec.studies.analysis.paper_tables import table
from jacrec.studies.analysis.read import is_study, read_study
from jacrec.studies.analysis.study_report import write_study_report
from jacrec.studies.analysis.videos import best_contestant, record_study_videos
from tests.study_folder import constant_gains, fill, write_failure, write_play, write_run, write_study


@pytest.fixture
def broken(tmp_path):
    """A study with a failed run, and plays that failed, are missing, are unreadable or belong to other networks."""
    path = fill(write_study(tmp_path / "broken", seeds=(10, 11, 12)), constant_gains)
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


def test_report_of_a_study_without_episodes(tmp_path):
    path = write_study(tmp_path / "s", contestants={})
    spec = yaml.safe_load((path / "study.yaml").read_text())
    (path / "study.yaml").write_text(yaml.safe_dump(spec | {"stages": ["dynamics"], "models": {}}))
    for task in spec["tasks"]:
        for seed in spec["seeds"]:
            write_run(path / "cells" / task / f"seed-{seed}" / "run", task, stages=("dynamics",))
    study = read_study(path)
    assert study.gaps == []
    text = write_study_report(study).read_text()
    assert "Trained: dynamics only; no episodes are played." in text
    assert "| hopper-medium | 0.0784 ± 0.001281 | 0.1667 ± 0.000002 |" in text
    assert "![Figure 2](plots/figure_2.png)" in text
    assert "Figure 3](" not in text
    assert "## Scores" not in text


def test_report_with_the_base_policy_only(tmp_path):
    path = fill(write_study(tmp_path / "s", contestants={}), constant_gains)
    text = write_study_report(read_study(path)).read_text()
    assert "| hopper-medium | 41.5 ± 2.1 | 415 ± 21 | 2 × 4 |" in text
    assert "## Paired gains" not in text


def test_report_contents(folder):
    path = write_study_report(read_study(folder))
    text = path.read_text()
    assert path == folder / "report" / "report.md"
    assert "2 tasks × 2 training seeds (10, 11) × 6 contestants: 24 evaluations, all of them finished" in text
    assert "mpc gains over the base policy: +4.0 [+4.0, +4.0] points of normalised score on average over 2 tasks" in text
    assert "No task of 2 is worse than -1 beyond noise. Shown to be no worse: 2 of 2." in text
    assert "What the world model adds: mpc gains over h0: +3.0 [+3.0, +3.0]" in text
    assert "With 2 training seeds (fewer than 10)" in text
    assert "Missing" not in text
    for text_part in ("percent", "return", "last evaluation", "jacrec 0.0", "cores 2", "Hopper-v4"):
        assert text_part in text
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (path.parent / link).exists(), link
    gains = json.loads((path.parent / "gains.json").read_text())["gains"]
    assert gains["slow"]["base"]["average"]["worse_than_minus_1"] == ["hopper-medium", "halfcheetah-medium-replay"]
    assert gains["mpc"]["h0"]["tasks"]["hopper-medium"]["per_seed"] == pytest.approx([3.0, 3.0])


def test_gaps_are_listed_and_excluded(broken):
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
    for text_part in (
        "objective is not finite (2 attempts)",
        "MemoryError: no room",
        "diverged",
        "actor network",
        "cannot be read",
    ):
        assert text_part in text


def test_returns_are_used_without_reference_returns(tmp_path):
    path = fill(write_study(tmp_path / "s", tasks=["hopper-medium"]), constant_gains, scored=False)
    study = read_study(path)
    gain = paired(study, "hopper-medium", "mpc", "base")
    assert gain is not None
    assert (gain.unit, gain.estimate.mean) == ("return", pytest.approx(40.0))
    assert average_gain(study, "mpc") is None
    assert "hopper-medium (return)" in write_study_report(study).read_text()
    assert set(table(study, 1).rows[6][7:]) == {"–"}


def test_task_specific_settings_are_mentioned(tmp_path):
    path = write_study(tmp_path / "s")
    spec = yaml.safe_load((path / "study.yaml").read_text())
    spec["tasks"]["hopper-medium"]["contestants"] = {"mpc": {"lr": 0.5}}
    (path / "study.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    study = read_study(fill(path, constant_gains))
    assert study.gaps == []
    row = next(row for row in study_tables.contestants(study).rows if row[0] == "mpc")
    assert row[1].endswith("; set differently for hopper-medium")


def test_videos_without_a_rendering_backend(study, monkeypatch):
    assert best_contestant(study, "hopper-medium") == "mpc"
    monkeypatch.setattr(
        "jacrec.studies.analysis.videos.probe", lambda: Rendering(False, "egl", "rendering with egl failed: no backend")
    )
    videos = record_study_videos(study, study.path / "report")
    assert set(videos) == set(study.tasks)
    assert all(text.startswith("no video: rendering with egl failed: no backend; on Debian") for text in videos.values())
    text = write_study_report(study, videos=videos).read_text()
    assert "* hopper-medium: no video: rendering with egl failed: no backend" in text


def test_videos_show_the_best_contestant_with_its_world_model(tmp_path, monkeypatch):
    path = fill(
        write_study(tmp_path / "s"), lambda task, seed, name: 9.0 if name == "plain" else constant_gains(task, seed, name) - 40
    )
    calls = []

    def record(run, config, folder, **options):
        calls.append((run, config.mpc.horizon, config.episodes, folder, options))
        return Video(folder / f"{options['stem']}.gif", "")

    monkeypatch.setattr("jacrec.studies.analysis.videos.probe", lambda: Rendering(True, "egl", ""))
    monkeypatch.setattr("jacrec.studies.analysis.videos.load_run", lambda run: run)
    monkeypatch.setattr("jacrec.studies.analysis.videos.record_video", record)
    study = read_study(path)
    videos = record_study_videos(study, tmp_path)
    assert videos["hopper-medium"] == "hopper-medium-plain-seed-10.gif"
    run, horizon, episodes, folder, options = calls[0]
    cell = path / "cells" / "hopper-medium" / "seed-10"
    assert (run, horizon, episodes, folder) == (cell / "run", 3, 10, tmp_path)
    assert (options["label"], options["dynamics"]) == ("plain", cell / "models" / "deterministic")
    assert videos["halfcheetah-medium-replay"].startswith("halfcheetah-medium-replay-mpc-")
    assert calls[1][-1]["dynamics"] is None
    text = write_study_report(study, videos=videos).read_text()
    assert "* hopper-medium: [hopper-medium-plain-seed-10.gif](hopper-medium-plain-seed-10.gif)" in text


def test_report_command_prints_a_table_or_writes_the_report(folder, capsys):
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


def test_report_command_rejects_options_of_the_other_kind(folder, tmp_path, capsys):
    assert cli.main(["report", str(tmp_path), "--table", "1"]) == cli.USAGE_ERROR
    assert "expected a study's folder (with study.yaml) for --table" in capsys.readouterr().err
    assert cli.main(["report", str(folder), "--evaluation", str(tmp_path)]) == cli.USAGE_ERROR
    assert "expected no --evaluation for a study" in capsys.readouterr().err


def test_empty_study_has_no_report(tmp_path):
    path = write_study(tmp_path / "s")
    with pytest.raises(ValueError, match=r"s: expected finished evaluations or trained models, got neither.*jacrec sweep"):
        write_study_report(read_study(path))
    with pytest.raises(FileNotFoundError, match="no study at"):
        read_study(tmp_path)
