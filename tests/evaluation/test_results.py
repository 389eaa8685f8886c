"""What a comparison claims, how fast it says a controller is, and with which settings it says that rows were played."""

import io
import itertools
import time
from dataclasses import asdict

import matplotlib.text
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

from jacrec.control.config import MPCConfig
from jacrec.control.controller import MPC
from jacrec.envs.batch import BatchedEnv
from jacrec.evaluation import run_plots
from jacrec.evaluation.config import EvalConfig
from jacrec.evaluation.episodes import play
from jacrec.evaluation.evaluate import evaluate
from jacrec.evaluation.results import compare, settings_apart, settings_in_words, table, verdict
from jacrec.evaluation.run_report import write_run_report
from jacrec.evaluation.statistics import Estimate
from jacrec.training.stages.rebrac import discounted_returns
from tests.training_data import linear_system

OWN = EvalConfig(
    episodes=2,
    mpc=MPCConfig(horizon=1, particles=2, updates=2, lr=1e-4, carry="step"),
    h0_lr=5e-5,
    h0_updates=1,
    h0_carry="episode",
    probe_every=50,
    growth_horizon=2,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def record(trained, folder):
    return evaluate(trained, OWN, out=folder, quiet=True)


@pytest.mark.parametrize(
    ("mean", "low", "high", "outcome"),
    [
        (-0.0006, -0.0009, -0.0002, "has the same printed score as"),
        (0.04, 0.01, 0.08, "has the same printed score as"),
        (0.0006, -0.0009, 0.002, "does not differ clearly from"),
        (0.06, 0.01, 0.08, "gains over"),
        (-3.0, -4.0, -2.0, "loses against"),
    ],
)
def test_nothing_is_claimed_below_the_printed_digits(mean, low, high, outcome):
    assert verdict(Estimate(mean, 1.0, low, high, 10), "MPC", "the base policy", "points").startswith(f"MPC {outcome} the base")


class Slow:
    """It takes long at some calls, as a controller that compiles does."""

    def __init__(self, n, m):
        self.action, self.calls = np.zeros((n, m)), 0

    def act(self, observation):
        self.calls += 1
        if self.calls in (1, 5):
            time.sleep(0.25)
        return self.action

    def new_episode(self, rows=None):
        pass


def test_the_rate_is_a_median_without_the_first_call():
    controller = Slow(2, 3)
    log = play(BatchedEnv("Hopper-v4", 2), controller, [1, 2])
    assert controller.calls > 6
    assert log.seconds > 0.5
    assert log.decisions_per_second > 5 * log.decisions / log.seconds


def test_the_controller_is_warm_before_the_clock(trained, record, monkeypatch):
    warmed = []
    real = MPC.warm_up

    def warm_up(self, *args, **options):
        warmed.append(self.config.horizon)
        return real(self, *args, **options)

    monkeypatch.setattr(MPC, "warm_up", warm_up)
    again = evaluate(trained, OWN, out=trained.parent / "warm", quiet=True)
    assert warmed == [0, 1]
    for name in ("h0", "mpc"):
        assert again["contestants"][name]["returns"] == record["contestants"][name]["returns"]


def test_older_records_have_the_mean_rate(record):
    entry = record["contestants"]["mpc"]
    assert next(r for r in compare(record) if r.name == "mpc").decisions_per_second == entry["decisions_per_second"]
    old = {**record, "contestants": {k: dict(v) for k, v in record["contestants"].items()}}
    del old["contestants"]["mpc"]["decisions_per_second"]
    mean = entry["decisions"] / entry["seconds"]
    assert next(r for r in compare(old) if r.name == "mpc").decisions_per_second == pytest.approx(mean)


def test_every_row_says_with_which_settings_it_was_played(trained, folder, record):
    words = {name: settings_in_words(record, name) for name in ("base", "h0", "mpc")}
    assert words == {
        "base": "as trained",
        "h0": "H 0, E 1, lr 5e-05, ψ carried over the episode",
        "mpc": "H 1, M 2, E 2, lr 0.0001, ψ reset at every step",
    }
    controller = asdict(MPCConfig(anchor=0.1, terminal="base", units="value"))
    assert settings_in_words({"contestants": {"mpc": {"controller": controller}}}, "mpc") == (
        "H 5, M 16, E 1, lr 5e-05 mean|Q| units, anchor 0.1, the base's action in the last term, ψ carried over the episode"
    )
    apart = ["updates 1 against 2", "lr 5e-05 against 0.0001", "carry episode against step"]
    assert settings_apart(record) == apart
    text = write_run_report(trained, folder).read_text()
    assert all(word in text for word in words.values())
    assert "; ".join(apart) in text
    assert "What the world model adds" not in text
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(record))
    shown = console.export_text()
    assert all(word in shown for word in words.values())


def test_ticks_do_not_overlap(record, tmp_path, monkeypatch):
    """Three scores that differ in the fourth digit."""
    same = {**record, "contestants": {k: dict(v) for k, v in record["contestants"].items()}}
    for i, entry in enumerate(same["contestants"].values()):
        entry["scores"] = [31.1234 - 0.0006 * i, 31.1300 - 0.0007 * i]
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, *a, **k: drawn.append(self))
    run_plots.scores(same, tmp_path / "scores.png")
    (figure,) = drawn
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        boxes = sorted((box.x0, box.x1) for box in boxes)
        assert len(boxes) >= 2
        assert all(a[1] < b[0] for a, b in itertools.pairwise(boxes)), boxes


def test_curves_of_models_are_on_log_axes_and_the_critic_has_the_data_beside_it(tmp_path, monkeypatch):
    lines = [
        {"stage": "rebrac", "update": 1, "q_policy": 3.0, "data_return": 2.0},
        {"stage": "dynamics", "update": 1, "one_step_rmse": 0.1, "still_rmse": 1.0},
        {"stage": "reward", "update": 1, "reward_rmse": 0.1, "reward_std": 1.0},
    ]
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, *a, **k: drawn.append(self))
    assert run_plots.learning_curves(lines, tmp_path / "learning.png")
    critic, model, reward = drawn[0].axes
    assert (model.get_yscale(), reward.get_yscale()) == ("log", "log")
    shown = [text.get_text() for text in critic.get_legend().findobj(matplotlib.text.Text)]
    assert any("in the data" in text for text in shown)


def test_returns_of_the_data_are_sums_to_the_end_of_the_episode():
    data = linear_system()
    got = discounted_returns(data, 0.9)
    expected = np.zeros(len(data))
    for t in range(len(data)):
        i, weight = t, 1.0
        while True:
            expected[t] += weight * float(data.reward[i])
            weight *= 0.9
            if data.terminal[i] or not data.has_next_action[i]:
                break
            i += 1
    np.testing.assert_allclose(got, expected, rtol=1e-10)
