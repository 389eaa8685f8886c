"""The scripts of paper_checks/: equations hold, and violations are reported."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jacrec.engine.jacobians import chain
from tests import ROOT
from tests.study_folder import CONTESTANTS, fill, write_failure, write_rehearsed, write_study

SCRIPTS = ROOT / "paper_checks"


@pytest.fixture
def script(monkeypatch):
    """Import a script of paper_checks/ by name, with its folder on the path."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


@pytest.fixture
def spoil(monkeypatch):
    """Make a function, named in the module that uses it, return an altered result."""

    def replace(module, name, alter):
        module = importlib.import_module(module)
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **options: alter(original(*args, **options)))

    return replace


def test_every_equation_of_the_theorem_holds(script, capsys):
    ledger = script("theorem_4_1").main()
    assert ledger.failed == []
    assert [label for label in ledger.rows if re.fullmatch(r"\(\d+\)", label)] == [f"({i})" for i in range(1, 33)]
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith(f"All {len(ledger.rows)} lines hold")
    assert "DOES NOT HOLD" not in printed


def test_every_equation_occurs_once():
    source = (SCRIPTS / "theorem_4_1.py").read_text()
    assert [source.count(f'"({i})"') for i in range(1, 33)] == [1] * 32


@pytest.mark.parametrize(
    ("module", "name", "alter", "fails"),
    [
        ("jacrec.engine.gradient", "state_step", lambda r: (r[0], -r[1]), {"(4)", "(22)"}),
        ("jacrec.engine.jacobians.chain", "chain_adjoint", lambda r: (r[0], r[1] * (1 + 1e-9)), {"(22)"}),
        ("jacrec.engine.jacobians.chain", "step_embedding", lambda r: r.float(), {"(5)", "(24)", "(30)"}),
        (
            "jacrec.engine.linearize",
            "term_and_gradient",
            lambda r: (r[0], r[1] * float("nan"), r[2]),
            {"(16)", "(17)", "(19)", "(20)"},
        ),
    ],
    ids=["sign in state_step", "adjoint off by 1e-9", "step embedding in float32", "reward gradient not a number"],
)
def test_a_broken_engine_is_detected(script, spoil, monkeypatch, capsys, module, name, alter, fails):
    theorem = script("theorem_4_1")
    monkeypatch.setattr(chain, "_embedded", chain._embedded.__wrapped__)  # without its cache
    spoil(module, name, alter)
    failed = {row.label for row in theorem.main(("default",)).failed}
    assert fails <= failed
    assert "(1)" not in failed
    printed = capsys.readouterr().out
    assert printed.count("DOES NOT HOLD") == len(failed)
    assert "do not hold" in printed.splitlines()[-1]


def test_algorithm_1_agrees_line_by_line(script, capsys):
    ledger = script("algorithm_1").main()
    assert ledger.failed == []
    assert list(ledger.rows) == ["1", "3", "4", "8", "10", "12", "15", "16", "18"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("All 9 lines hold")


def test_descent_is_detected(script, monkeypatch, capsys):
    """Whether `Auto` uses the torch step or the compiled one."""
    ascend, compiled = (
        importlib.import_module(name) for name in ("jacrec.control.ascent", "jacrec.kernels.cpu.gradient.gradient")
    )
    ascend, update = ascend.ascend, compiled.compute_update
    monkeypatch.setattr(
        "jacrec.control.update.ascend", lambda p, estimate, lr, clip, **more: ascend(p, estimate, -lr, clip, **more)
    )
    monkeypatch.setattr(compiled, "compute_update", lambda p, lr, clip, **more: update(p, -lr, clip, **more))
    failed = {row.label for row in script("algorithm_1").main().failed}
    assert {"1", "3", "16", "18"} <= failed
    assert "4" not in failed
    assert "do not hold" in capsys.readouterr().out


def test_right_and_printed_reverse_steps(script, capsys):
    check = script("eq_1_reverse_step")
    result = check.main(updates=1500)
    assert check.holds(result)
    assert result[check.RIGHT.name].std == pytest.approx(result["truth, drawn again"].std, rel=0.1)
    assert "The right sampler meets the truth" in capsys.readouterr().out


def test_exact_denoiser_of_a_gaussian(script):
    check = script("eq_1_reverse_step")
    errors = [check.gaussian_chain(check.RIGHT, K, 0.5, 0.6).distance for K in (10, 100, 1000)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.005  # measured 0.0025
    for variant in (check.STEP, check.INPUT, check.ALL):
        assert check.gaussian_chain(variant, 1000, 0.5, 0.6).distance > 0.3


def test_distance_of_other_shapes_and_nan_is_infinite(script):
    distance = script("ledger").distance
    assert distance(torch.ones(3), torch.ones(3)) == 0
    assert distance(torch.ones(3), torch.ones(1, 3)) == float("inf")
    assert distance(torch.full((3,), float("nan")), torch.ones(3)) == float("inf")
    assert distance(torch.ones(3), torch.full((3,), float("nan"))) == float("inf")


def notation_rows():
    """(line, names in code, files) of every table row of NOTATION.md that names a file."""
    for line in (SCRIPTS.parent / "NOTATION.md").read_text().splitlines():
        cells = line.strip("|").split("|")
        files = re.findall(r"`([\w/]+\.py)`", cells[-1])
        if line.startswith("|") and files:
            column = next(cell for cell in cells[1:] if "`" in cell or "–" in cell)
            yield line, re.findall(r"`(\w+)`", column), files


def test_names_in_notation_exist():
    rows = list(notation_rows())
    assert len(rows) > 30
    for line, names, files in rows:
        text = "".join((SCRIPTS.parent / file).read_text() for file in files)
        assert names, line
        for name in names:
            assert re.search(rf"\b{name}\b", text), f"{name} is not in {files}: {line}"


def test_notation_lists_every_equation():
    text = "".join(line for line, _, _ in notation_rows())
    assert [i for i in range(1, 33) if f"({i})" not in text] == []


def test_averages_of_the_papers_tables(script, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(script("record"), "RESULTS", tmp_path)
    tables = script("tables")
    found = tables.main()
    assert len(found) == 21
    wrong = [a for a in found if a.finding == "does not add up"]
    assert [(a.table, a.column, a.printed, round(a.of_rows, 2)) for a in wrong] == [(2, "MPCwDWM", 81.77, 81.67)]
    cut = {(a.table, a.column) for a in found if a.finding.endswith("cut off instead of rounded")}
    assert cut == {(2, "IQL"), (2, "SAC-RND"), (2, "ReBRAC")}
    text = (tmp_path / "tables.md").read_text()
    assert text.startswith("# The paper's tables, recomputed\n\nMade by `python paper_checks/tables.py`.")
    assert "81.77 is printed, the rows give 81.67" in text
    assert "results/tables.md" in capsys.readouterr().out


def test_recorded_tables_are_reproduced(script, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(script("record"), "RESULTS", tmp_path)
    script("tables").main()
    assert (tmp_path / "tables.md").read_text() == (SCRIPTS / "results" / "tables.md").read_text()


@pytest.fixture
def results(script, monkeypatch, tmp_path):
    """A folder in place of results/ for the scripts that read studies."""
    for module in ("record", "gains", "figures"):
        monkeypatch.setattr(script(module), "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_gains_with_control_and_factors(script, results, tmp_path, capsys):
    gain = {"base": 0.0, "h0": 1.0, "mpc": 4.0, "h1": 2.0, "slow": -3.0, "plain": 3.0, "both": 9.0}
    path = write_study(tmp_path / "study", seeds=(10, 11, 12), contestants=CONTESTANTS | {"both": {"horizon": 1, "lr": 1e-3}})
    fill(path, lambda task, seed, name: 40.0 + seed + gain[name])
    write_failure(path / "cells/hopper-medium/seed-10/plays/h1.failed.json", f"OSError: {path}/cells/x is gone")
    (path / "cells/hopper-medium/seed-10/plays/h1.json").unlink()
    assert script("gains").main(path) == results / "gains.md"
    text = (results / "gains.md").read_text()
    assert "Made by `python paper_checks/gains.py study`." in text
    assert "**mpc** gains over its base policy: +4.0 [+4.0, +4.0] points of normalised score on average over 2 sets" in text
    assert "2 of 2 gain beyond noise by the bootstrap, 2 by Student's t too; 0 lose" in text
    assert "What the world model adds: **mpc** gains over its control h0: +3.0 [+3.0, +3.0]" in text
    assert "With 3 training seeds (fewer than 10)" in text
    row = next(line for line in text.splitlines() if line.startswith("| hopper-medium |"))
    assert row.count("+3.0 [+3.0, +3.0]") == 1
    assert row.count("+4.0 [+4.0, +4.0]") == 1
    assert [x for x in ("### H", "### lr", "### world model") if x not in text] == []
    assert "one setting for all sets: +9.0" in text
    assert "| both | H 1, lr 0.001 | +9.0 [+9.0, +9.0]" in text
    assert "OSError: x is gone" in text
    assert "steps: 5" in text
    record = json.loads((results / "gains.json").read_text())
    assert record["scores"]["hopper-medium"]["mpc"]["11"] == [55.0] * 4
    assert record["gains"]["mpc"]["base"]["average"]["bootstrap"]["mean"] == pytest.approx(4.0)
    for kept in (text, json.dumps(record)):
        assert str(tmp_path) not in kept
    assert "**mpc** gains" in capsys.readouterr().out


def test_gains_require_paired_scores(script, results, tmp_path):
    path = write_study(tmp_path / "study")
    with pytest.raises(ValueError, match=r"study: .*scores of mpc and the base policy.*got none"):
        script("gains").main(path)
    with pytest.raises(ValueError, match=r"alone: .*contestant.*got none"):
        script("gains").main(write_study(tmp_path / "alone", contestants={}))


def test_figures_of_studies_and_runs(script, results, tmp_path, capsys):
    path = fill(write_study(tmp_path / "study"), lambda task, seed, name: 1.0)
    figures = script("figures")
    assert [decreased for _, decreased in figures.main(path)] == [True] * 12
    text = (results / "figures.md").read_text()
    assert "fell from the first to the last measurement in 8 of 8 trainings" in text
    assert "Updates 20000 to 60000; the paper's 20000 to 200000." in text
    run = path / "cells" / "hopper-medium" / "seed-10" / "run"
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([*lines, lines[0].replace("20000", "80000")]))
    judged = figures.main(run)
    assert [(curve.updates[-1], decreased) for curve, decreased in judged] == [(80000, False), (60000, True)]
    assert "None is a medium-replay set" in (results / "figures.md").read_text()
    assert {path.name for path in results.iterdir()} >= {"figure_2.png", "figure_2.csv", "figure_3.png", "figure_3.csv"}
    with pytest.raises(ValueError, match=r"metrics\.jsonl, got none"):
        figures.main(tmp_path)


def test_results_contain_no_absolute_paths(script):
    record = script("record")
    assert record.without_paths("see /home/me/data/x.hdf5, 3/4 and a/b or ~/c/d") == "see x.hdf5, 3/4 and a/b or ~/c/d"
    assert record.command("gains.py", Path("/home/me/my study")) == "python paper_checks/gains.py 'my study'"
    assert record.readable_json({"a": [1.5, -2], "b": ["x"]}) == '{\n "a": [1.5, -2],\n "b": [\n  "x"\n ]\n}'


def test_gains_with_rehearsals(script, tmp_path, capsys):
    path = write_rehearsed(tmp_path / "study")
    before = sorted(p.name for p in (SCRIPTS / "results").iterdir())
    kept = script("gains").main(path, out=tmp_path / "kept")
    assert kept == tmp_path / "kept" / "gains.md"
    assert sorted(p.name for p in (SCRIPTS / "results").iterdir()) == before
    text = kept.read_text()
    assert "**mpc**, rehearsed: h3, h8 or base, chosen cell by cell" in text
    assert "**h0-rehearsed**, the control without a world model" in text
    assert "h0-rehearsed acts without a world model, but the rehearsal that chooses it uses one." in text
    assert "## Do rehearsals predict real gains?" in text
    assert "at most 400 steps in the world model" in text
    assert "| all | 0 | 4 | 0 | 4 |" in text
    assert "| always h8 | -4.0 | 9.0 |" in text
    for name in ("mpc", "h0-rehearsed"):
        assert f"![imagined and real gains](gains_rehearsal_{name}.png)" in text
        assert (kept.parent / f"gains_rehearsal_{name}.png").is_file()
    record = json.loads((kept.parent / "gains.json").read_text())
    assert len(record["rehearsals"]["mpc"]) == 8
    assert f"written to {tmp_path / 'kept'}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["gains", "figures"])
def test_scripts_that_read_studies_take_a_folder(name, tmp_path):
    """The folder is a positional argument."""
    call = [sys.executable, str(SCRIPTS / f"{name}.py"), str(tmp_path / "none")]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "no study at" in done.stderr or "expected a study or a run" in done.stderr
