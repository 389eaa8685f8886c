"""Gain against cost: the Pareto front, shares of a unit's gain and cost, timing of decisions."""

import importlib
import json
import math
import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jacrec.models.io import load_module, save_module
from jacrec.studies.analysis.pareto import Milliseconds, decision_times, milliseconds, pareto_front, shares
from jacrec.studies.analysis.read import read_study
from tests import ROOT
from tests.conftest import property_cases
from tests.small_run import hardly_trained
from tests.study_folder import fill, write_study

COSTS = st.floats(0.1, 10.0)
GAIN = {"base": 0.0, "h0": 1.0, "mpc": 5.0, "h1": 4.0, "slow": -2.0, "plain": 6.0}


@property_cases(0.02)
@given(points=st.dictionaries(st.text(max_size=3), st.tuples(COSTS, COSTS), min_size=1, max_size=8))
def test_pareto_front_dominates_all_points(points):
    best = pareto_front(points)
    costs, gains = zip(*(points[name] for name in best), strict=True)
    assert list(costs) == sorted(set(costs))
    assert list(gains) == sorted(set(gains))
    for cost, gain in points.values():
        assert any(points[b][0] <= cost and points[b][1] >= gain for b in best)


@pytest.fixture
def script(monkeypatch):
    """Import a script of paper_checks by its stem, with its folder on the path."""
    monkeypatch.syspath_prepend(str(ROOT / "paper_checks"))
    return importlib.import_module


def times(**medians: float) -> dict[str, Milliseconds]:
    return {name: Milliseconds(ms, 0.9 * ms, 1.1 * ms) for name, ms in medians.items()}


def test_shares_are_relative_to_the_units_gain_and_cost(tmp_path):
    study = read_study(fill(write_study(tmp_path / "study"), lambda task, seed, name: 30 + GAIN[name]))
    found = shares(study, "mpc", times(mpc=4.0, h1=0.4, plain=1.0, slow=2.0))
    assert [s.contestant for s in found] == ["h1", "plain", "slow", "mpc"]
    by_name = {s.contestant: s for s in found}
    assert by_name["h1"].of_gain == pytest.approx(0.8)
    assert by_name["h1"].of_cost == pytest.approx(0.1)
    assert by_name["h1"].left.mean == pytest.approx(-1.0)
    assert by_name["slow"].of_gain == pytest.approx(-0.4)
    assert by_name["mpc"].of_gain == by_name["mpc"].of_cost == 1.0
    # points beyond 80 % of mpc's 5: h1 gains 4, plain 6, slow −2
    beyond = {s.contestant: s.beyond.mean for s in shares(study, "mpc", times(mpc=4.0, h1=0.4, plain=1.0, slow=2.0), keep=0.8)}
    assert beyond == pytest.approx({"h1": 0.0, "plain": 2.0, "slow": -6.0, "mpc": 1.0})
    assert all(s.of_gain is None for s in shares(study, "slow", times(mpc=4.0, slow=2.0)))
    with pytest.raises(ValueError, match=r"^h0: .*decision time"):
        shares(study, "h0", times(mpc=4.0))


def test_decisions_are_timed_with_the_studys_networks(tmp_path):
    contestants = {
        "mpc": {"horizon": 2, "particles": 2},
        "other": {"horizon": 1, "particles": 1, "model": "deterministic"},
        "mppi": {"planner": "mppi", "horizon": 1, "samples": 2},
        "chooser": {"rehearse": ["mpc"]},
    }
    path = write_study(tmp_path / "study", tasks=("hopper-medium",), seeds=(3,), contestants=contestants)
    cell = path / "cells" / "hopper-medium" / "seed-3"
    with pytest.raises(ValueError, match=r"study: .* run and the models \['deterministic'\]"):
        decision_times(read_study(path), list(contestants))
    run = hardly_trained(tmp_path / "made")
    shutil.copytree(run, cell / "run")
    save_module(load_module(run / "dynamics.safetensors"), cell / "models" / "deterministic" / "dynamics.safetensors")
    found = decision_times(read_study(path), list(contestants), decisions=5, turns=2, threads=1)
    assert list(found) == ["mpc", "other", "mppi"]
    assert all(0 < ms.low <= ms.median <= ms.high < math.inf for ms in found.values())


def test_check_with_a_unit_without_gain(script, tmp_path, monkeypatch, capsys):
    check = script("cost_gain")
    study = fill(write_study(tmp_path / "study"), lambda task, seed, name: 30 + GAIN[name], noise=1e-9)
    monkeypatch.setattr(check, "decision_times", lambda *_, **__: times(mpc=9.0, h1=0.4, slow=8.0))
    check.main(study, ("slow",), out=tmp_path / "out")
    # h1 gains 4, slow −2: 4 − 0.8 · (−2)
    printed = capsys.readouterr().out
    assert re.search(r"exceed 80% of slow's gain .*\*\*h1\*\* \+5\.6", printed)
    assert "at 5.0%" in printed


def test_the_times_of_decisions_are_their_percentiles():
    assert milliseconds([6.0, 0.5, 0.5] * 7).median == 0.5
    assert milliseconds(range(101)) == Milliseconds(50.0, 20.0, 80.0)


@pytest.mark.parametrize(("h1_costs", "answer"), [(0.4, "reached by **h1** 84% at 10.0%"), (0.8, "NOT reached; the cheapest")])
def test_check_reports_whether_the_goal_is_reached(script, tmp_path, monkeypatch, capsys, h1_costs, answer):
    check = script("cost_gain")
    gain = GAIN | {"h1": 4.2}
    study = fill(write_study(tmp_path / "study"), lambda task, seed, name: 30 + gain[name], noise=1e-9)
    monkeypatch.setattr(check, "decision_times", lambda *_, **__: times(mpc=4.0, h1=h1_costs, slow=2.0))
    path = check.main(study, ("mpc", "slow"), tasks=("hopper-medium",), out=tmp_path / "out")
    printed = capsys.readouterr().out
    assert printed.count(answer) == 2
    assert printed.count("shares are undefined, since slow's own gain is not significant") == 2
    assert printed.count("No contestant at that cost has a significant gain") == 2  # none takes a tenth of slow's 2 ms
    text = path.read_text()
    assert text.count("| **h1** |") == 2
    assert str(tmp_path) not in text
    record = json.loads((tmp_path / "out" / "cost_gain.json").read_text())
    assert list(record["sets"]) == ["all sets", "hopper-medium"]
    for own in record["sets"].values():
        assert own["front"] == ["h1", "mpc"]
        assert [c["contestant"] for c in own["mpc"]] == ["h1", "slow", "mpc"]
    assert (tmp_path / "out" / "cost_gain.png").stat().st_size > 0
