"""The evaluation curve: the policy is played while it is trained, without changing what is trained."""

from dataclasses import replace

import pytest

from jacrec.evaluation import run_plots
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.contestant import open_env
from jacrec.evaluation.curve import PolicyEvaluation
from jacrec.evaluation.episodes import PolicyController, play
from jacrec.training import load_run, train, train_seeds
from jacrec.training.loop import read_metrics
from tests.training.test_run import SMALL, same_bits, weights
from tests.training_data import linear_system

SHORT = PlayConfig(episodes=2, seed=9, max_episode_steps=20)
CONFIG = replace(SMALL, env_id="Pendulum-v1")


@pytest.fixture(scope="module")
def data():
    """Transitions of Pendulum's dimensions, with references for a score."""
    made = linear_system(3, 1)
    info = replace(made.info, env_id="Pendulum-v1", ref_min=-1000.0, ref_max=0.0, action_low=(-2.0,), action_high=(2.0,))
    return replace(made, info=info)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    return train(CONFIG, tmp_path_factory.mktemp("runs") / "curve", data=data, evaluate=PolicyEvaluation(40, SHORT), quiet=True)


def points(folder):
    return {line["update"]: line for line in read_metrics(folder / "metrics.jsonl") if "eval_return" in line}


def test_policy_is_played_every_so_many_updates_and_at_the_end(trained):
    lines = points(trained)
    assert list(lines) == [40, 60]
    assert all(line["stage"] == "rebrac" and line["eval_return_se"] >= 0 for line in lines.values())
    assert lines[60]["eval_score"] == pytest.approx((lines[60]["eval_return"] + 1000) / 10)


def test_last_point_is_the_return_of_the_trained_policy(trained):
    run = load_run(trained)
    env = open_env(run, SHORT, threads=1)
    returns = play(env, PolicyController(run.policy), SHORT.seeds).returns
    assert points(trained)[60]["eval_return"] == sum(returns) / len(returns)


def test_training_is_the_same_with_and_without(trained, data, tmp_path):
    plain = train(CONFIG, tmp_path / "plain", data=data, quiet=True)
    assert same_bits(weights(trained), weights(plain))
    assert not points(plain)


def test_a_resumed_run_has_every_point_once(trained, data, tmp_path):
    def interrupt(line):
        if line["stage"] == "rebrac" and line["update"] == 40:
            raise KeyboardInterrupt

    folder, evaluate = tmp_path / "resumed", PolicyEvaluation(20, SHORT)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, folder, data=data, evaluate=evaluate, quiet=True, on_log=interrupt)
    train(CONFIG, folder, data=data, evaluate=evaluate, quiet=True)
    updates = [line["update"] for line in read_metrics(folder / "metrics.jsonl") if "eval_return" in line]
    assert updates == [20, 40, 60]
    assert points(folder)[60]["eval_return"] == points(trained)[60]["eval_return"]


@pytest.mark.parametrize("batched", [False, True])
def test_seeds_have_curves_of_their_own(data, tmp_path, batched):
    folders = train_seeds(
        CONFIG,
        [1, 2],
        tmp_path,
        stages=["rebrac"],
        data=data,
        batched=batched,
        evaluate=PolicyEvaluation(60, SHORT),
        quiet=True,
    )
    first, second = (points(folder)[60]["eval_return"] for folder in folders)
    assert first != second


def test_points_between_lines_and_unknown_environments_are_refused_before_anything_is_written(data, tmp_path):
    with pytest.raises(ValueError, match=r"multiple of log_every = 20.* got 30"):
        train(CONFIG, tmp_path / "between", data=data, evaluate=PolicyEvaluation(30, SHORT), quiet=True)
    nowhere, anywhere = replace(data, info=replace(data.info, env_id=None)), replace(CONFIG, env_id=None)
    with pytest.raises(ValueError, match="names its environment"):
        train(anywhere, tmp_path / "nowhere", data=nowhere, evaluate=PolicyEvaluation(20, SHORT), quiet=True)
    with pytest.raises(ValueError, match="every: expected"):
        PolicyEvaluation(0)
    assert not list(tmp_path.iterdir())


def test_curve_is_drawn_where_there_is_one(trained, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, *a, **k: drawn.append(self))
    assert run_plots.learning_curves(read_metrics(trained / "metrics.jsonl"), tmp_path / "learning.png")
    axes = drawn[0].axes
    assert len(axes) == 4
    assert list(axes[3].lines[0].get_xdata()) == [40, 60]
