"""Damage to the files of a run: each mishap, and what may come of it.

`draw` draws from a strategy of Hypothesis. Networks and checkpoints carry checksums. Settings and metrics are text that may be
edited: a changed digit is another setting, so for them only the kind of the outcome is checked.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from jacrec.training import load_run, train
from jacrec.training.loop import read_metrics
from jacrec.training.run import Run
from tests.training.test_folder import SHORT, weights
from tests.training_data import linear_system

NETWORKS = ("actor.safetensors", "critic.safetensors", "dynamics.safetensors", "reward.safetensors")
CHECKPOINTS = tuple(f"checkpoints/{stage}.safetensors" for stage in ("rebrac", "dynamics", "reward"))
TEXTS = ("config.yaml", "metrics.jsonl")
MISHAPS = ("bits", "bytes", "cut", "grown", "other", "removed", "hole")


def finished_run(folder: Path) -> Path:
    """A trained run in `folder`, to be damaged in copies."""
    return train(SHORT, folder, data=linear_system(), quiet=True)


def changed(draw: Callable, kind: str, raw: bytes, other: bytes) -> bytes | None:
    """A file's bytes after some mishap; None: it is gone."""
    place = draw(st.integers(0, len(raw) - 1))
    if kind == "bits":
        return raw[:place] + bytes([raw[place] ^ 1 << draw(st.integers(0, 7))]) + raw[place + 1 :]
    if kind == "bytes":
        return raw[:place] + draw(st.binary(min_size=1, max_size=8)) + raw[place:]
    if kind == "hole":
        return raw[:place] + bytes(len(raw) - place)
    return {"cut": raw[:place], "grown": raw + raw[place:], "other": other, "removed": None}[kind]


def outcome(call: Callable[[], Any]) -> tuple[Any, str]:
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


def loaded(finished: Path, folder: Path, name: str) -> str:
    """Networks load as they were, or the error names one."""
    run, told = outcome(lambda: load_run(folder))
    assert name.split(".")[0] in told if run is None else same(run, load_run(finished)), told
    return "refused" if run is None else "read"


def read(finished: Path, folder: Path, name: str) -> str:
    """Texts are read, or the error names the run."""
    results = []
    for call in (load_run, lambda out: train(SHORT, out, data=linear_system(), quiet=True)):
        result, told = outcome(lambda call=call: call(folder))
        assert result is not None or str(folder) in told, told
        results.append(result)
    return "refused" if None in results else "read"


def outcome_of_text(finished: Path, folder: Path, name: str) -> str:
    """A text is read without training, or the error names the run."""
    read = {"config.yaml": load_run, "metrics.jsonl": lambda out: read_metrics(out / "metrics.jsonl")}[name]
    result, told = outcome(lambda: read(folder))
    assert result is not None or str(folder) in told, told
    return "refused" if result is None else "read"


def resumed(finished: Path, folder: Path, name: str) -> str:
    """Training goes on from checkpoints as it was, or the error names the file."""
    for network in NETWORKS:
        (folder / network).unlink()
    result, told = outcome(lambda: train(SHORT, folder, data=linear_system(), quiet=True))
    if result is None:
        assert str(folder / name) in told, told
        return "refused"
    expected = weights(finished)
    assert all(torch.equal(v, expected[k]) for k, v in weights(folder).items())
    return "read"


DAMAGES = {
    "networks": (NETWORKS, (*NETWORKS, *TEXTS), loaded),
    "texts": (TEXTS, NETWORKS, read),
    "checkpoints": (CHECKPOINTS, (*CHECKPOINTS, *TEXTS), resumed),
}
"""by kind of file: the files, those that one may be mistaken for, and what has to come of damage"""


def damage(finished: Path, kind: str, draw: Callable) -> tuple[str, str]:
    """Damage a file of a copy of the run; the mishap, and "read" or "refused".

    Raises:
        AssertionError: a wrong result, or an error that does not name what is wrong.
        Exception: whatever else comes of it.
    """
    names, donors, check = DAMAGES[kind]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(finished, Path(place) / "run"))
        path, mishap = folder / draw(st.sampled_from(names)), draw(st.sampled_from(MISHAPS))
        new = changed(draw, mishap, path.read_bytes(), (folder / draw(st.sampled_from(donors))).read_bytes())
        path.unlink() if new is None else path.write_bytes(new)
        return mishap, check(finished, folder, str(path.relative_to(folder)))
