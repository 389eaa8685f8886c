"""The examples run, cut to a moment where they train, and are short."""

import re
import runpy
import subprocess
import sys

import pytest
import torch

from jacrec.data import make_dataset
from tests import ROOT
from tests.examples.sac import save_sac
from tests.small_run import hardly_trained

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MOST_LINES = 60


@pytest.fixture
def run_main(monkeypatch, capsys):
    """Calls the `main` of an example; what it printed."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)

    def run(name, **arguments):
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"](**arguments)
        return capsys.readouterr().out

    return run


def numbers(text):
    """The numbers in a text."""
    return [float(x) for x in re.findall(r"-?\d+(?:\.\d+)?", text)]


def test_six_short_examples():
    assert [path.stem for path in EXAMPLES] == ["d4rl_row", "feedback", "own_models", "quickstart", "realtime", "sb3"]
    assert {path.name: n for path in EXAMPLES if (n := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES} == {}


def test_quickstart(run_main):
    alone, thinking = numbers(run_main("quickstart"))
    assert thinking > alone + 1


def test_feedback(run_main):
    held, steered = numbers(run_main("feedback"))
    assert steered > held


def test_own_models(run_main):
    alone, thinking = numbers(run_main("own_models", episodes=60, updates=1000, steps=60))
    assert thinking > 2 * alone


def test_realtime(run_main, tmp_path):
    run = hardly_trained(tmp_path)
    decisions, *_, updates = numbers(run_main("realtime", run=run, seconds=0.4, deadline_ms=1000, updates=1))
    assert (decisions, updates) == (50, 1)


def test_d4rl_row(run_main, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    data = make_dataset("hopper", "random", steps=400).dataset_id
    options = {"seeds": (0, 1), "updates": 2, "batch_size": 32, "episodes": 1, "out": tmp_path / "row"}
    row = run_main("d4rl_row", data=data, **options).splitlines()[-1]
    assert re.fullmatch(rf"\| {data} (\| -?\d+\.\d ± \d+\.\d ){{3}}\|", row), row


def test_sb3(tmp_path):
    saved = save_sac(tmp_path)
    brief = ["--updates", "20", "--episodes", "1", "--out", str(saved)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "examples" / "sb3.py"), *brief], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Pendulum-v1: 1 episodes" in done.stdout
    assert re.search(r"MPC +│? *-\d+", done.stdout), done.stdout
