"""Trained runs that ship with the package: whole, playable, and unpacked by whoever takes a run's folder."""

import pytest
import torch

from jacrec import MPC
from jacrec.control.config import MPCConfig
from jacrec.evaluation.tuning import tuned_controller
from jacrec.models.io import load_module
from jacrec.training import pretrained
from jacrec.training.folder import NETWORKS
from jacrec.training.pretrained import pack, pretrained_runs, unpack
from jacrec.training.run import load_run
from tests.small_run import hardly_trained

NAMES = [run.name for run in pretrained_runs()]


def test_runs_ship():
    assert "halfcheetah-medium-expert" in NAMES
    assert sum(run.size for run in pretrained_runs()) < 12e6


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_run_is_unpacked_where_it_is_loaded(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = load_run(f"pretrained/{name}")
    assert (tmp_path / "pretrained" / name / "config.yaml").is_file()
    assert not list((tmp_path / "pretrained").glob(".*"))
    assert all(p.dtype == torch.float32 for p in run.policy.parameters())
    mpc = MPC(run.policy, run.world, tuned_controller(run, MPCConfig(), MPCConfig()))
    assert mpc.act(torch.zeros(run.policy.state_dim)).shape == (run.policy.action_dim,)
    assert bool(mpc.last.accepted.all())
    load_run(f"pretrained/{name}")  # again: the folder is there now


def test_unpacking_never_overwrites(tmp_path):
    out = tmp_path / "there"
    out.mkdir()
    with pytest.raises(ValueError, match="expected no file or folder there"):
        unpack(NAMES[0], out)
    assert list(out.iterdir()) == []
    with pytest.raises(ValueError, match="name: expected"):
        unpack("walker", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_path_that_only_looks_like_one_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"pretrained/walker: expected a run's folder or one of pretrained/{NAMES[0]}"):
        load_run("pretrained/walker")
    for path in (f"other/{NAMES[0]}", f"{tmp_path}/pretrained/{NAMES[0]}"):
        with pytest.raises(FileNotFoundError, match="expected a run"):
            load_run(path)
    assert list(tmp_path.iterdir()) == []


def test_packing_rounds_to_half_precision_and_keeps_the_notes(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path / "shipped")
    folder = hardly_trained(tmp_path)
    packed = pack(folder, "own")
    again = load_run(unpack("own", tmp_path / "again"))
    for part in (part for parts in NETWORKS.values() for part in parts):
        half, back, first = (load_module(path / f"{part}.safetensors") for path in (packed, again.path, folder))
        for h, b, f in zip(half.state_dict().values(), back.state_dict().values(), first.state_dict().values(), strict=True):
            if f.is_floating_point():
                assert h.dtype == torch.float16
                assert torch.equal(b, f.half().float())
    assert again.world.value_scale == load_run(folder).world.value_scale
