"""Property: whatever happens to the files of a run, it loads and resumes as it was, or an error names a file.

Networks and checkpoints carry checksums. Settings and metrics are text that may be edited: a changed digit is another setting,
so for them only the kind of the outcome is checked.
"""

import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jacrec.training import load_run, train
from jacrec.training.run import Run
from tests.conftest import property_cases
from tests.training.test_folder import SHORT, weights
from tests.training_data import linear_system

NETWORKS = ("actor.safetensors", "critic.safetensors", "dynamics.safetensors", "reward.safetensors")
CHECKPOINTS = tuple(f"checkpoints/{stage}.safetensors" for stage in ("rebrac", "dynamics", "reward"))
TEXTS = ("config.yaml", "metrics.jsonl")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(SHORT, tmp_path_factory.mktemp("runs") / "run", data=linear_system(), quiet=True)


def changed(draw, raw, other):
    """A file's bytes after some mishap; None: it is gone."""
    kind = draw(st.sampled_from(("bits", "bytes", "cut", "grown", "other", "removed", "hole")))
    place = draw(st.integers(0, len(raw) - 1))
    if kind == "bits":
        return raw[:place] + bytes([raw[place] ^ 1 << draw(st.integers(0, 7))]) + raw[place + 1 :]
    if kind == "bytes":
        return raw[:place] + draw(st.binary(min_size=1, max_size=8)) + raw[place:]
    if kind == "hole":
        return raw[:place] + bytes(len(raw) - place)
    return {"cut": raw[:place], "grown": raw + raw[place:], "other": other, "removed": None}[kind]


def outcome(call):
    """What a call returns, and what it tells if it cannot."""
    try:
        return call(), ""
    except (ValueError, OSError) as error:
        return None, str(error)


def same(run: Run, expected: Run) -> bool:
    """Whether two runs act and imagine alike."""
    parts = [(r.policy, r.world.dynamics, r.world.reward, r.world.critic) for r in (run, expected)]
    states = [[m.state_dict() for m in own if isinstance(m, torch.nn.Module)] for own in parts]
    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(*states, strict=True))


def damaged(finished, tmp_path_factory, draw, names, donors):
    """A copy of the run in which the file of one of the names is changed, or gone: its folder and that name."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("damaged") / "run")
    path = folder / draw(st.sampled_from(names))
    new = changed(draw, path.read_bytes(), (folder / draw(st.sampled_from(donors))).read_bytes())
    path.unlink() if new is None else path.write_bytes(new)
    return folder, str(path.relative_to(folder))


@property_cases(0.04)
@given(data=st.data())
def test_damaged_networks_load_as_they_were_or_are_told(finished, tmp_path_factory, data):
    folder, name = damaged(finished, tmp_path_factory, data.draw, NETWORKS, (*NETWORKS, *TEXTS))
    run, told = outcome(lambda: load_run(folder))
    assert name.split(".")[0] in told if run is None else same(run, load_run(finished))
    shutil.rmtree(folder)


@property_cases(0.02)
@given(data=st.data())
def test_damaged_texts_are_read_or_told(finished, tmp_path_factory, data):
    folder, _ = damaged(finished, tmp_path_factory, data.draw, TEXTS, NETWORKS)
    for call in (load_run, lambda out: train(SHORT, out, data=linear_system(), quiet=True)):
        result, told = outcome(lambda call=call: call(folder))
        assert result is not None or str(folder) in told
    shutil.rmtree(folder)


@property_cases(0.02)
@given(data=st.data())
def test_training_resumes_from_damaged_checkpoints_as_it_was_or_tells(finished, tmp_path_factory, data):
    folder, name = damaged(finished, tmp_path_factory, data.draw, CHECKPOINTS, (*CHECKPOINTS, *TEXTS))
    for network in NETWORKS:
        (folder / network).unlink()
    result, told = outcome(lambda: train(SHORT, folder, data=linear_system(), quiet=True))
    if result is None:
        assert str(folder / name) in told
    else:
        expected = weights(finished)
        assert all(torch.equal(v, expected[k]) for k, v in weights(folder).items())
    shutil.rmtree(folder)
