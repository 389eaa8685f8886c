"""`jacrec data show --plot`: what the panels show."""

import numpy as np
import pytest

from jacrec import cli
from jacrec.data import from_arrays
from jacrec.evaluation import data_plots
from jacrec.evaluation.drawing import figure


def arrays(n=90, lengths=(40, 30, 20)):
    rng = np.random.default_rng(0)
    terminals = np.zeros(n, bool)
    terminals[39] = True
    return rng.standard_normal((n, 3)), rng.uniform(-1, 0, (n, 2)), np.ones(n), terminals, list(lengths)


def test_a_set_is_drawn(tmp_path, capsys):
    observations, actions, rewards, terminals, lengths = arrays()
    ends = np.isin(np.arange(90), np.cumsum(lengths) - 1)
    path = tmp_path / "mine.npz"
    np.savez(
        path,
        observations=observations,
        next_observations=np.roll(observations, -1, 0),
        actions=actions,
        rewards=rewards,
        terminals=terminals,
        timeouts=ends & ~terminals,
    )
    for suffix in ("png", "svg"):
        assert cli.main(["data", "show", str(path), "--plot", str(tmp_path / f"x.{suffix}")]) == 0
        assert f"plot: {tmp_path}/x.{suffix}" in capsys.readouterr().out
        assert (tmp_path / f"x.{suffix}").stat().st_size > 1000
    assert cli.main(["data", "show", str(path), "--plot", str(tmp_path / "x.doc")]) == 2
    assert "doc" in capsys.readouterr().err


def test_the_panels_hold_every_episode_and_step(tmp_path):
    observations, actions, rewards, terminals, lengths = arrays()
    data = from_arrays(
        observations, actions, rewards, terminals, lengths=lengths, next_observations=np.roll(observations, -1, 0)
    )
    with figure(tmp_path / "x.png", (5, 3), 3) as (returns, ends, shares):
        data_plots._histogram(returns, np.array(lengths, float), "Lengths", "steps", "episodes")
        data_plots._ends(ends, np.array(lengths, float), np.array([True, False, False]))
        data_plots._actions(shares, data.action)
        assert sum(bar.get_height() for bar in returns.patches) == 3
        assert returns.get_title(loc="left") == "Lengths: mean 30"
        assert [line.get_ydata()[-1] for line in ends.lines] == pytest.approx([1 / 3, 2 / 3])
        assert [text.get_text() for text in ends.get_legend().get_texts()] == ["with a terminal row: 33%", "without: 67%"]
        image = np.asarray(shares.images[0].get_array())
        assert image.shape == (2, data_plots.BINS)
        np.testing.assert_allclose(image.sum(1), 1.0)
        assert not image[:, data_plots.BINS // 2 + 1 :].any()  # all actions are negative
