"""A picture of a data set: its episodes, rewards and actions."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from jacrec.data.catalog import episode_table
from jacrec.data.transitions import Transitions
from jacrec.evaluation.drawing import COLOURS, ZERO_LINE, figure

BINS = 40


def dataset_plot(data: Transitions, path: Path) -> None:
    """Draw returns, lengths and ends of the episodes, rewards, and the actions of each component, into one file.

    Args:
        path: a file in a format that matplotlib writes, by its suffix.

    Raises:
        ValueError: another suffix.
    """
    returns, lengths, terminated = episode_table(data)
    with figure(path, (19, 3.5), 5) as (left, middle, ends, rewards, actions):
        _histogram(left, returns, "Returns", "undiscounted return of an episode", "episodes")
        _histogram(middle, lengths, "Episode lengths", "steps", "episodes")
        _ends(ends, lengths, terminated)
        _histogram(rewards, data.reward, "Rewards", "reward of a step", "steps")
        rewards.set_yscale("log")
        _actions(actions, data.action)


def _histogram(axes: Axes, values: np.ndarray, title: str, what: str, count: str) -> None:
    axes.hist(values, bins=BINS, color=COLOURS["mpc"], alpha=0.8)
    axes.axvline(float(values.mean()), **ZERO_LINE)
    axes.set_title(f"{title}: mean {values.mean():.3g}")
    axes.set_xlabel(what)
    axes.set_ylabel(count)


def _ends(axes: Axes, lengths: np.ndarray, terminated: np.ndarray) -> None:
    """The shares of episodes that have ended after so many steps, with a terminal row and without."""
    order = np.argsort(lengths, kind="stable")
    steps = np.concatenate(([0.0], lengths[order]))
    for mask, colour, label in ((terminated, COLOURS["h0"], "with a terminal row"), (~terminated, COLOURS["base"], "without")):
        share = np.concatenate(([0.0], np.cumsum(mask[order]) / len(lengths)))
        axes.step(steps, share, where="post", color=colour, label=f"{label}: {mask.mean():.0%}")
    axes.set_ylim(-0.02, 1.02)
    axes.set_title("Ended episodes")
    axes.set_xlabel("steps")
    axes.set_ylabel("share of the episodes")
    axes.legend()


def _actions(axes: Axes, action: np.ndarray) -> None:
    """The share of each component's actions in every bin of [-1, 1]."""
    counts = np.array([np.histogram(column, bins=BINS, range=(-1.0, 1.0))[0] for column in action.T])
    extent = (-1.0, 1.0, len(counts) - 0.5, -0.5)
    shown = axes.imshow(counts / len(action), aspect="auto", extent=extent, cmap="Blues", interpolation="nearest")
    axes.figure.colorbar(shown, ax=axes, label=f"share of the steps in {BINS} bins")
    axes.locator_params(axis="y", integer=True)
    axes.grid(visible=False)
    axes.set_title("Actions, in [-1, 1]")
    axes.set_xlabel("action")
    axes.set_ylabel("component")
