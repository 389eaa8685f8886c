"""What commands print: text as it is, and what to do."""

import numpy as np
import pytest

from jacrec import cli
from jacrec.commands import doctor
from jacrec.commands.doctor import Check
from jacrec.commands.live import summary
from jacrec.data.transitions import DatasetInfo
from jacrec.evaluation.live import LiveLog
from jacrec.evaluation.markdown import terminal, terminal_table
from jacrec.studies.ledger import Failure
from jacrec.studies.show import failure_table
from jacrec.training.pretrained import pretrained_runs
from jacrec.training.run import Run


def test_brackets_and_colons_are_printed_as_they_are(capsys):
    text = "pip install 'jacrec[video]' at 10:100:20 [/]"
    console = terminal()
    console.print(text, soft_wrap=True)
    console.print(terminal_table(["name"], [[text]], title=text))
    console.print(failure_table({"a": Failure(text, "", 1)}, {}))
    assert capsys.readouterr().out.count("'jacrec[video]' at 10:100:20 [/]") == 4


@pytest.mark.parametrize("width", [60, 80, 120])
def test_names_are_not_cut_in_a_narrow_terminal(monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert cli.main(["models", "list"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    letters = "".join(out.split())
    assert all(run.name in letters for run in pretrained_runs())
    if width == 120:
        assert all(run.data in out and run.env_id in out for run in pretrained_runs())


def test_the_doctor_prints_extras(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(doctor, "checks", lambda: [Check("rendering", "note", "x", "pip install 'jacrec[video]'")])
    assert doctor.doctor() == 0
    assert "pip install 'jacrec[video]'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("requirement", "bounds"),
    [
        ("mujoco<4,>=3.999", "<4,>=3.999"),
        ("minari[hdf5]>=99.0; platform_system == 'Linux'", ">=99.0"),
        ("numpy>=1,<2", ">=1,<2"),
        ("numpy>=1", None),
        ("no-such-package>=1", None),
    ],
)
def test_an_old_package_is_named_with_what_is_needed(monkeypatch, requirement, bounds):
    monkeypatch.setattr(doctor, "requirements", lambda: [requirement])
    name = requirement.split("<")[0].split(">")[0].split("[")[0]
    checks = doctor.check_packages()
    if bounds is None:
        assert [check.status for check in checks] == ["ok"]
        return
    assert checks[-1].status == "broken"
    assert checks[-1].remedy == f"pip install '{name}{bounds}'"
    monkeypatch.setattr(doctor, "import_module", lambda name: 1 / 0)
    (modules,) = doctor.check_modules()
    assert modules.remedy == f"install other versions first: {name}"


@pytest.mark.parametrize(("updates", "advised"), [([0] * 51 + [1, 2], True), ([0, 3, 3], False), ([], False)])
def test_live_without_updates_says_what_to_do(updates, advised):
    run = Run.__new__(Run)
    object.__setattr__(run, "info", DatasetInfo("x"))
    ms = list(np.ones(len(updates)))
    text = summary(run, LiveLog(1.0, 53, "time limit", 0, 0, ms, updates, 0.0, 1.0, 8.0, 7.2))
    assert ("fewer --mpc.particles" in text) == advised
    assert not advised or "in 51 of 53 decisions" in text
