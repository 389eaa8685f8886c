"""The environment that a run is played in."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from jacrec.control.config import MPCConfig
from jacrec.data.transitions import DatasetInfo
from jacrec.evaluation.config import EvalConfig, PlayConfig
from jacrec.evaluation.contestant import environment_id, open_env
from jacrec.evaluation.evaluate import evaluate
from jacrec.evaluation.live import LiveConfig, play_live
from jacrec.evaluation.rehearsal import make_rehearsal
from jacrec.evaluation.tuning import tune
from jacrec.online.config import DeployConfig
from jacrec.online.deploy import deploy
from jacrec.training.run import load_run


def test_a_run_imports_no_module_that_its_record_names(tmp_path, monkeypatch):
    """gymnasium imports the module of an id module:Env-v0. A run may be someone else's; the command line is one's own."""
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    run = SimpleNamespace(path=Path("runs/theirs"), info=DatasetInfo("theirs", "stranger:Env-v0"))
    with pytest.raises(ValueError, match=r"^runs/theirs: expected .*registered .*got 'stranger:Env-v0'.*--env-id stranger:Env"):
        open_env(run, PlayConfig())
    assert "stranger" not in sys.modules
    assert environment_id(run, "stranger:Env-v0") == "stranger:Env-v0"
    assert environment_id(SimpleNamespace(path=run.path, info=DatasetInfo("ours", "Hopper-v4")), None) == "Hopper-v4"


@pytest.mark.parametrize("verb", ["eval", "deploy", "live", "rehearse", "tune"])
def test_units_of_a_value_scale_that_there_is_not_are_told_before_anything_is_played(trained, tmp_path, verb):
    run = load_run(trained)
    run = replace(run, world=replace(run.world, value_scale=None))
    units = MPCConfig(units="value", horizon=1, particles=2)
    calls = {
        "eval": lambda out: evaluate(run, EvalConfig(mpc=units), out=out, quiet=True),
        "deploy": lambda out: deploy(run, DeployConfig(mpc=units, episodes=1), out=out),
        "live": lambda out: play_live(run, LiveConfig(mpc=units)),
        "rehearse": lambda out: make_rehearsal(run, out, {"one": units}),
        "tune": lambda out: tune(run, out),
    }
    with pytest.raises(ValueError, match=r'units: expected "absolute" .*got "value"; .*--mpc.units; of candidates: in a YAML'):
        calls[verb](tmp_path / "out")
    assert not (tmp_path / "out").exists()
