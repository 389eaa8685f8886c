"""Races over synthetic returns, whose right answer is known, and of a trained run."""

import importlib
import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jacrec import MPCConfig
from jacrec.evaluation.config import EvalConfig, PlayConfig
from jacrec.evaluation.evaluate import evaluate
from jacrec.evaluation.run_report import write_run_report
from jacrec.evaluation.tuning import BASE, CHOICE, FILE, Race, TuneConfig, default_families, tune, tuned_controller
from jacrec.training.run import load_run
from tests.conftest import property_cases
from tests.small_run import hardly_trained


class Returns:
    """Returns whose gains over the base policy have given means; every call is recorded."""

    def __init__(self, gains, spread, size, seed=0):
        self.gains, self.spread, self.size, self.seed, self.calls = {BASE: 0.0, **gains}, spread, size, seed, []

    def __call__(self, name, i):
        self.calls.append((name, i))
        base = np.random.default_rng([self.seed, i]).normal(50, 20, self.size)
        own = np.random.default_rng([self.seed, i, *map(ord, name)]).normal(self.gains[name], self.spread, self.size)
        return (base + (0 if name == BASE else own)).tolist()


def test_a_clear_gain_is_found():
    play = Returns({"a": 0.0, "b": 6.0, "c": -5.0, "d": 1.0}, 3.0, 10)
    race = Race(list("abcd"), TuneConfig(budget=200)).run(play)
    assert race.choice == "b"
    assert race.gain is not None
    assert race.gain.low > 0


def test_a_loss_chooses_the_base_policy():
    race = Race(list("ab"), TuneConfig(budget=200)).run(Returns({"a": -4.0, "b": -8.0}, 2.0, 10))
    assert race.choice == BASE
    assert race.remaining == ["a"]


def test_no_effect_spends_the_budget_and_chooses_the_base_policy():
    config = TuneConfig(budget=100)
    race = Race(list("ab"), config).run(Returns({"a": 0.0, "b": 0.0}, 0.0, 10))
    assert race.choice == BASE
    assert race.spent == config.budget


def test_selection_and_decision_use_different_seeds():
    play = Returns({"a": 1.0, "b": 0.0, "c": 0.5}, 4.0, 5)
    race = Race(list("abc"), TuneConfig(budget=100, round=5)).run(play)
    selecting = len(race.ranking)
    last = [i for name, i in play.calls if name == race.remaining[0]]
    assert race.gain is not None
    assert race.gain.n == 5 * sum(i >= selecting for i in last)


@property_cases(0.3)
@given(
    gains=st.lists(st.floats(-10, 10), min_size=1, max_size=6),
    spread=st.floats(0, 10),
    size=st.integers(2, 6),
    more=st.integers(0, 80),
    seed=st.integers(0, 99),
)
def test_a_race_keeps_its_budget_and_plays_base_on_every_seed(gains, spread, size, more, seed):
    names = [f"c{i}" for i in range(len(gains))]
    budget = 2 * len(names) * size + more
    play = Returns(dict(zip(names, gains, strict=True)), spread, size, seed)
    race = Race(names, TuneConfig(budget=budget, round=size)).run(play)
    candidates = [(name, i) for name, i in play.calls if name != BASE]
    assert len(candidates) == len(set(candidates))
    assert race.spent == size * len(candidates) <= budget
    assert {i for _, i in candidates} <= {i for name, i in play.calls if name == BASE}
    assert race.choice in (BASE, race.remaining[0])
    assert race.gain is not None
    assert race.spent > budget - size or race.gain.high < 0


def test_the_default_budget_reaches_a_decision_about_the_default_candidates():
    for family, candidates in default_families().items():
        best = list(candidates)[3]
        play = Returns(dict.fromkeys(candidates, 0.0) | {best: 8.0}, 5.0, 10)
        assert Race(list(candidates), TuneConfig()).run(play).choice == best, family


def test_a_budget_below_one_round_of_all_is_refused():
    with pytest.raises(ValueError, match=r"^budget: expected at least 90 .* got 50"):
        Race([f"c{i}" for i in range(6)], TuneConfig(budget=50))


@pytest.mark.parametrize("shape", ["normal", "bimodal", "falls"])
def test_luck_alone_is_chosen_as_rarely_as_the_level_says(shape):
    """Without any effect: a choice is an error, of which the level allows 2.5 % on the winning side."""

    class Luck(Returns):
        def __call__(self, name, i):
            if shape == "normal" or name == BASE:
                return super().__call__(name, i)
            base = super().__call__(BASE, i)
            rng = np.random.default_rng([self.seed, i, *map(ord, name)])
            if shape == "bimodal":
                return (np.array(base) + rng.choice([-30.0, 30.0], self.size)).tolist()
            # two points better, but for one deep fall in ten episodes: worse by one point on average
            return (np.array(base) + np.where(rng.random(self.size) < 0.1, -28.0, 2.0) + rng.normal(0, 0.1, self.size)).tolist()

    names, config = [f"c{i}" for i in range(8)], TuneConfig(budget=200)
    chosen = sum(Race(names, config).run(Luck(dict.fromkeys(names, 0.0), 5.0, 10, seed)).choice != BASE for seed in range(300))
    assert chosen <= 0.025 * 300 + 3 * (0.025 * 0.975 * 300) ** 0.5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return load_run(hardly_trained(tmp_path_factory.mktemp("tuning")))


FAMILIES = {
    "mpc": {"a": MPCConfig(horizon=1, particles=2, lr=1e-3, units="value"), "b": MPCConfig(horizon=1, particles=2, lr=1e-5)},
    "h0": {"c": MPCConfig(horizon=0, particles=1, lr=1e-4)},
}
SMALL = TuneConfig(budget=12, round=2)


def test_a_race_of_a_run_is_resumed_and_evaluated(run, tmp_path, monkeypatch):
    whole = tune(run, tmp_path / "whole", FAMILIES, SMALL)
    plays = []

    def interrupted(line, share):
        assert 0 <= share <= 1
        plays.append(line)
        if len(plays) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(run, tmp_path / "cut", FAMILIES, SMALL, progress=interrupted)
    with pytest.raises(ValueError, match="resume"):
        evaluate(run, EvalConfig(tuned=True), out=tmp_path / "cut", quiet=True)
    with pytest.raises(ValueError, match="environment"):
        tune(run, tmp_path / "cut", FAMILIES, SMALL, PlayConfig(max_episode_steps=5))
    again = tune(run, tmp_path / "cut", FAMILIES, SMALL, progress=lambda line, share: plays.append(line))
    assert again["played"] == whole["played"]
    assert again["choice"] == whole["choice"]
    assert len(plays) == len({*plays})  # nothing was played twice

    choice = yaml.safe_load((tmp_path / "cut" / CHOICE).read_text())
    assert set(choice) == {"mpc", "h0"}
    with pytest.raises(ValueError, match="differs"):
        tune(run, tmp_path / "cut", FAMILIES, TuneConfig(budget=14, round=2))


def test_an_evaluation_plays_what_was_tuned(run, tmp_path):
    record = tune(run, tmp_path, FAMILIES, SMALL)
    chosen = record["settings"]["families"]["mpc"]["a"]
    record["choice"]["mpc"] |= {"name": "a", "controller": chosen}
    record["choice"]["h0"] |= {"name": BASE}
    (tmp_path / FILE).write_text(json.dumps(record))
    config = EvalConfig(episodes=2, seed=3, tuned=True, probe_every=500)
    for _ in range(2):  # the second call resumes a finished evaluation
        played = evaluate(run, config, out=tmp_path, quiet=True)["contestants"]
        assert played["mpc"]["controller"] == chosen
        assert played["h0"]["returns"] == played["base"]["returns"]
        assert played["mpc"]["returns"] != played["base"]["returns"]
    record["choice"]["mpc"] |= {"name": BASE}
    (tmp_path / FILE).write_text(json.dumps(record))
    with pytest.raises(ValueError, match="tuning"):
        evaluate(run, config, out=tmp_path, quiet=True)


def test_live_and_deploy_play_what_was_tuned(run, tmp_path, monkeypatch, capsys):
    copied = tmp_path / "run"
    shutil.copytree(run.path, copied)
    own = load_run(copied)
    default = MPCConfig()
    with pytest.raises(FileNotFoundError, match="jacrec tune"):
        tuned_controller(own, default, default)
    record = tune(own, copied, FAMILIES, SMALL)
    chosen = FAMILIES["mpc"]["a"]
    record["choice"]["mpc"] |= {"name": "a", "controller": asdict(chosen)}
    (copied / FILE).write_text(json.dumps(record))
    assert tuned_controller(own, default, default) == chosen
    with pytest.raises(ValueError, match=r"^tuned: "):
        tuned_controller(own, MPCConfig(lr=1.0), default)
    played = []
    for verb, function in (("live", "play_live"), ("deploy", "deploy")):
        monkeypatch.setattr(f"jacrec.commands.{verb}.{function}", lambda _, config, **more: played.append(config.mpc) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            importlib.import_module(f"jacrec.commands.{verb}").run([str(copied), "--tuned"])
    assert played == [chosen, chosen]


def test_the_tuning_seed_is_refused_for_evaluation(run, tmp_path):
    tune(run, tmp_path, FAMILIES, SMALL)
    with pytest.raises(ValueError, match=r"^seed: .* got 7"):
        evaluate(run, EvalConfig(seed=SMALL.seed, tuned=True), out=tmp_path, quiet=True)


def test_a_tuning_of_other_networks_is_refused(run, tmp_path):
    tune(run, tmp_path, FAMILIES, SMALL)
    record = json.loads((tmp_path / FILE).read_text())
    record["networks"]["actor"] = "0"
    (tmp_path / FILE).write_text(json.dumps(record))
    with pytest.raises(ValueError, match="networks"):
        evaluate(run, EvalConfig(tuned=True), out=tmp_path, quiet=True)


def test_a_tuning_for_another_environment_is_refused(run, tmp_path):
    tune(run, tmp_path, FAMILIES, SMALL)
    with pytest.raises(
        ValueError, match=rf"environment\.max_episode_steps; tune again: jacrec tune {run.path} --out {tmp_path} --again"
    ):
        evaluate(run, EvalConfig(tuned=True, max_episode_steps=50), out=tmp_path, quiet=True)


def test_a_report_of_a_tuned_evaluation(run, tmp_path):
    record = tune(run, tmp_path, FAMILIES, SMALL)
    for family in FAMILIES:
        record["choice"][family] |= {"name": BASE}
    (tmp_path / FILE).write_text(json.dumps(record))
    evaluate(run, EvalConfig(episodes=2, seed=3, tuned=True, probe_every=500), out=tmp_path, quiet=True)
    report = write_run_report(run.path, tmp_path)
    assert "which its tuning chose" in report.read_text()


def test_seeds_of_a_long_evaluation_may_not_reach_those_of_the_race(run, tmp_path):
    tune(run, tmp_path, FAMILIES, SMALL)
    with pytest.raises(ValueError, match=r"^seed: "):
        evaluate(run, EvalConfig(episodes=1001, seed=SMALL.seed - 1, tuned=True), out=tmp_path, quiet=True)
    with pytest.raises(ValueError, match=r"^budget: "):
        TuneConfig(budget=1001)


def test_budgets_of_all_families_are_checked_before_any_episode(run, tmp_path):
    many = {f"c{i}": MPCConfig(horizon=0, particles=1) for i in range(30)}
    for h0 in (many, {}):
        with pytest.raises(ValueError, match=r"^(budget|candidates): "):
            tune(run, tmp_path, {"mpc": FAMILIES["mpc"], "h0": h0}, SMALL)
        assert not (tmp_path / FILE).exists()


def test_equal_gains_without_variance_are_no_evidence():
    race = Race(["a"], TuneConfig(budget=40)).run(Returns({"a": 1e-9}, 0.0, 10))
    assert race.choice == BASE


def test_candidates_in_units_of_values_need_their_scale(run, tmp_path):
    bare = replace(run, world=replace(run.world, value_scale=None))
    with pytest.raises(ValueError, match="value_scale"):
        tune(bare, tmp_path, FAMILIES, SMALL)
    assert not (tmp_path / FILE).exists()


def test_tuned_takes_no_settings_beside_it():
    with pytest.raises(ValueError, match="h0_lr"):
        EvalConfig(tuned=True, h0_lr=1e-3)


def test_default_families_have_equal_size():
    families = default_families()
    assert len(families["mpc"]) == len(families["h0"])
    assert all(own.units == "value" for some in families.values() for own in some.values())
