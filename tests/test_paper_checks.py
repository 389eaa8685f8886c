"""The scripts of paper_checks/ report that the paper's equations hold, and say so when they do not."""

import importlib
import re
from pathlib import Path

import pytest
import torch

from jacrec.jacobians import chain

SCRIPTS = Path(__file__).parent.parent / "paper_checks"


@pytest.fixture
def script(monkeypatch):
    """Import a script of paper_checks/ by name, with its neighbours in reach as for `python paper_checks/<name>.py`."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


@pytest.fixture
def spoil(monkeypatch):
    """Replace an engine function, named as the module that uses it sees it, by one that alters its result."""

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


def test_every_equation_is_found_by_one_search():
    source = (SCRIPTS / "theorem_4_1.py").read_text()
    assert [source.count(f'"({i})"') for i in range(1, 33)] == [1] * 32


@pytest.mark.parametrize(
    ("module", "name", "alter", "fails"),
    [
        ("jacrec.gradient", "state_step", lambda r: (r[0], -r[1]), {"(4)", "(22)"}),
        ("jacrec.jacobians.chain", "chain_adjoint", lambda r: (r[0], r[1] * (1 + 1e-9)), {"(22)"}),
        ("jacrec.jacobians.chain", "step_embedding", lambda r: r.float(), {"(5)", "(24)", "(30)"}),
        (
            "jacrec.linearize",
            "value_and_gradient",
            lambda r: (r[0], r[1] * float("nan"), r[2]),
            {"(16)", "(17)", "(19)", "(20)"},
        ),
    ],
    ids=["sign in state_step", "adjoint off by 1e-9", "step embedding in float32", "reward gradient not a number"],
)
def test_a_broken_engine_does_not_pass(script, spoil, monkeypatch, capsys, module, name, alter, fails):
    theorem = script("theorem_4_1")
    monkeypatch.setattr(chain, "_embedded", chain._embedded.__wrapped__)  # nothing is remembered from before or for later
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


def test_algorithm_1_notices_descent(script, monkeypatch, capsys):
    ascend = importlib.import_module("jacrec.ascent").ascend
    for module in ("jacrec.mpc", "jacrec.controller"):
        monkeypatch.setattr(f"{module}.ascend", lambda p, estimate, lr, clip: ascend(p, estimate, -lr, clip))
    failed = {row.label for row in script("algorithm_1").main().failed}
    assert {"1", "3", "16", "18"} <= failed
    assert "4" not in failed
    assert "do not hold" in capsys.readouterr().out


def test_the_right_reverse_step_meets_the_truth_and_the_printed_one_does_not(script, capsys):
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


def test_a_ledger_refuses_shapes_and_nan(script):
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


def test_notation_names_what_exists():
    rows = list(notation_rows())
    assert len(rows) > 30
    for line, names, files in rows:
        text = "".join((SCRIPTS.parent / file).read_text() for file in files)
        assert names, line
        for name in names:
            assert re.search(rf"\b{name}\b", text), f"{name} is not in {files}: {line}"


def test_notation_places_every_equation():
    text = "".join(line for line, _, _ in notation_rows())
    assert [i for i in range(1, 33) if f"({i})" not in text] == []
