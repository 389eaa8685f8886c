"""The environment that a run is played in."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jacrec.data.transitions import DatasetInfo
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.contestant import environment_id, open_env


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
