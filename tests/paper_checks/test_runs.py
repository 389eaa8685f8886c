"""The checks of trained runs, on a barely trained one."""

import importlib
import json

import pytest

from tests.paper_checks.test_paper_checks import SCRIPTS
from tests.small_run import hardly_trained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        path = hardly_trained(root)
        patch.setenv("MINARI_DATASETS_PATH", str(root / "data"))
        yield path


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


def test_signal_and_noise(run, script, tmp_path, monkeypatch):
    check = script("signal_and_noise")
    path = check.main((run,), particles=(2, 4), horizon=(1, 2), states=10, out=tmp_path)
    rows = [line.strip("|").split("|") for line in path.read_text().splitlines() if line.startswith("| ")][2:]
    assert [(row[2].strip(), row[3].strip()) for row in rows] == [("1", "2"), ("1", "4"), ("2", "2"), ("2", "4")]
    for row in rows:
        low, middle, high = (float(x) for x in row[4:7])
        assert 0 < low <= middle <= high
    assert str(run.parent) not in path.read_text()
    with pytest.raises(ValueError, match=r"--data: .*1 runs, got 2"):
        check.main((run,), data=("a", "b"), out=tmp_path)


def test_one_step_models(run, script, tmp_path, capsys):
    check = script("one_step_models")
    path = check.main(run, models=(f"again={run}",), transitions=40, samples=3, ddim=(1,), out=tmp_path)
    record = json.loads((tmp_path / "one_step_models.json").read_text())
    assert list(record["models"]) == ["the run's", "the run's, DDIM 1", "again", "again, DDIM 1"]
    assert [m["calls"] for m in record["models"].values()] == [2, 1, 2, 1]
    assert record["models"]["again"] == record["models"]["the run's"]
    assert all(0 < m["rmse"] < 1e3 for m in record["models"].values())
    assert str(run.parent) not in path.read_text() + json.dumps(record)
    assert "written to" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--models: .*NAME=FOLDER, got 'again'"):
        check.main(run, models=("again",), out=tmp_path)
