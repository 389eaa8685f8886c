"""Paired gains, aggregates, controls and factors of synthetic studies."""

import numpy as np
import pytest

from jacrec.studies.analysis import study_tables
from jacrec.studies.analysis.factors import centre_of, differ_in_several, factors, leave_one_seed_out
from jacrec.studies.analysis.gains import aggregate, average_gain, cost, paired
from jacrec.studies.analysis.read import read_study
from jacrec.studies.analysis.settings import control_of, differing, main_contestant, settings_of
from tests.study_folder import constant_gains, fill, write_play, write_study


def test_gains_are_paired_by_training_seed_and_environment_seed(study):
    gain = paired(study, "hopper-medium", "mpc", "base")
    assert gain is not None
    assert (gain.seeds, gain.episodes, gain.unit) == ((10, 11), 8, "score")
    assert (gain.estimate.mean, gain.estimate.low, gain.estimate.high) == pytest.approx((4.0, 4.0, 4.0))
    average = average_gain(study, "mpc", "h0")
    assert average is not None
    assert (average.estimate.mean, average.t.low, average.t.high) == pytest.approx((3.0, 3.0, 3.0))


def test_pairing_is_independent_of_the_order_of_episodes(tmp_path):
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


def test_aggregate_statistics(study):
    total = aggregate(study, "mpc")
    assert total is not None
    assert total.mean.mean == pytest.approx(np.mean([44, 47, 51, 54]))
    assert total.iqm.mean == pytest.approx(np.mean([47, 51]))
    assert total.improvement is not None
    # per task 44, 47 against 40, 43
    assert total.improvement.mean == pytest.approx(1.0)
    h1 = aggregate(study, "h1")
    assert h1 is not None
    assert h1.improvement is not None
    # 42, 45 against 40, 43
    assert h1.improvement.mean == pytest.approx(0.75)
    assert cost(study, "base") == pytest.approx((0.025, 0.025, 0.025))


def test_control_is_the_most_similar_contestant_without_a_world_model(study):
    assert main_contestant(study) == "mpc"
    assert control_of(study, "mpc") == ("h0", [])
    assert control_of(study, "slow") == ("h0", ["lr"])
    assert control_of(study, "plain") == ("h0", [])
    assert control_of(study, "h0") is None
    assert control_of(study, "base") is None
    assert differing(settings_of(study, "mpc"), settings_of(study, "h0")) == ["horizon"]
    assert differing(settings_of(study, "mpc") | {"terminal": "base"}, settings_of(study, "h0")) == ["horizon"]
    with pytest.raises(ValueError, match=r"contestant: .*h0, mpc, h1, slow, plain, got 'base'"):
        main_contestant(study, "base")


def test_factors_group_contestants_that_differ_in_one_setting(study):
    found = factors(study, "mpc")
    assert {name: [(x.value, x.contestant) for x in levels] for name, levels in found.items()} == {
        "H": [("0", "h0"), ("1", "h1"), ("3", "mpc")],
        "lr": [("1e-05", "slow"), ("5e-05", "mpc")],
        "world model": [("default (diffusion, K = 5)", "mpc"), ("deterministic (deterministic)", "plain")],
    }
    assert differ_in_several(study, "mpc") == []
    assert centre_of(study, "mpc") == centre_of(study, "slow") == "mpc"
    assert factors(study, "slow")["lr"][0].centre
    # without a world model, mpc and plain are equal
    assert sum(map(len, factors(study, "h0").values())) > 2
    assert centre_of(study, "h1") == "mpc"


def test_choices_are_evaluated_on_the_held_out_seed(tmp_path):
    path = write_study(tmp_path / "s", seeds=(10, 11, 12), contestants={"mpc": {}, "other": {"lr": 1e-3}})
    # each contestant is best on the seeds it is not evaluated on
    values = {"base": [0, 0, 0], "mpc": [9, 0, 0], "other": [0, 4, 4]}
    study = read_study(fill(path, lambda task, seed, name: float(values[name][seed - 10])))
    choices = leave_one_seed_out(study)
    assert [(c.seed, c.chosen, c.gain) for c in choices] == [(10, "other", 0.0), (11, "mpc", 0.0), (12, "mpc", 0.0)]
    assert [c.gain for c in leave_one_seed_out(study, per_task=True)] == [0.0, 0.0, 0.0]


def test_significant_harm_is_reported(study):
    slow = average_gain(study, "slow")
    assert slow is not None
    assert study_tables.harm(slow).startswith("Worse than -1 beyond noise: hopper-medium -3.0 [-3.0, -3.0], halfcheetah")
    assert slow.worst.estimate.mean == pytest.approx(-3.0)


def test_no_warning_with_ten_seeds(tmp_path):
    path = fill(write_study(tmp_path / "s", tasks=["hopper-medium"], seeds=range(10, 20)), constant_gains)
    assert study_tables.few_seeds(read_study(path)) == ""


def test_unplayed_tasks_are_named_next_to_averages(tmp_path):
    path = fill(write_study(tmp_path / "s"), constant_gains)
    for play in path.glob("cells/hopper-medium/*/plays/mpc.json"):
        play.unlink()
    study = read_study(path)
    gain = average_gain(study, "mpc")
    assert gain is not None
    assert gain.absent == ("hopper-medium",)
    assert study_tables.harm(gain).endswith("Not measured: hopper-medium.")
    assert {row[0]: row for row in study_tables.scores(study, ["base", "mpc"]).rows}["average"][3] == "–"
