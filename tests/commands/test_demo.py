"""The demo's quick budget from nothing to a report, what a second run costs, and a film of it."""

import dataclasses

import imageio.v3 as iio
import pytest

from jacrec import cli
from jacrec.commands.demo import QUICK, demo
from jacrec.evaluation.rendering import probe
from jacrec.evaluation.video import record_video
from jacrec.training.run import load_run

SILENT = dataclasses.replace(QUICK, video=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a quick demo has run, without its film."""
    root = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root / "data"))
        assert demo(SILENT, root / "run", quiet=True) == root / "run" / "report.md"
    return root


def test_it_ends_with_a_report_of_every_stage(folder):
    text = (folder / "run" / "report.md").read_text()
    stages = ["train: rebrac", "train: dynamics", "train: reward", "evaluate: base", "evaluate: h0", "evaluate: mpc"]
    assert [stage for stage in ["data", *stages] if f"| {stage} |" not in text] == []
    assert "jacrec/demo-hopper-medium-replay-3000-v0" in text


def test_the_command_goes_on_with_what_is_there_and_prints_the_table(folder, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "data"))
    monkeypatch.setattr("jacrec.commands.demo.QUICK", SILENT)
    kept = [folder / "run" / "metrics.jsonl", folder / "run" / "evaluation.json", *(folder / "data").rglob("*.hdf5")]
    before = [path.read_bytes() for path in kept]
    assert cli.main(["demo", "--quick", "--out", str(folder / "run")]) == 0
    assert [path.read_bytes() for path in kept] == before
    out = capsys.readouterr().out
    assert "over H = 0" in out
    assert "total" in out
    assert out.rstrip().endswith(f"report: {folder / 'run' / 'report.md'}")


def test_another_run_is_not_overwritten(folder, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "data"))
    other = dataclasses.replace(SILENT, training=dataclasses.replace(SILENT.training, seed=1))
    with pytest.raises(ValueError, match="another run"):
        demo(other, folder / "run", quiet=True)


def test_base_beside_mpc_on_film(folder, monkeypatch, tmp_path):
    state = probe()
    if not state.ok:
        pytest.skip(state.reason)
    monkeypatch.setattr("jacrec.evaluation.video.find_spec", lambda name: None)  # as without imageio-ffmpeg
    film = record_video(load_run(folder / "run"), QUICK.evaluation, tmp_path, seconds=0.2)
    assert film.path == tmp_path / "episode.gif", film.reason
    frames = iio.imread(film.path)
    assert frames.shape[1:] == (240, 480, 3)
    assert len(frames) >= 5
    assert frames.std() > 10
