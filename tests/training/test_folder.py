"""A run's folder: one process at a time, damaged files, and training for longer."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from jacrec import cli
from jacrec.data import from_arrays
from jacrec.data.yaml_file import read_yaml
from jacrec.training import load_run, train
from jacrec.training.folder import claimed, differences, read_record
from jacrec.training.loop import read_metrics
from tests.training.test_run import SMALL, metrics, same_bits, weights
from tests.training_data import linear_system

SHORT = replace(
    SMALL,
    rebrac=replace(SMALL.rebrac, updates=30),
    dynamics=replace(SMALL.dynamics, updates=30, lr_schedule="constant"),
    reward=replace(SMALL.reward, updates=30),
)
LONGER = replace(
    SHORT,
    rebrac=replace(SHORT.rebrac, updates=50),
    dynamics=replace(SHORT.dynamics, updates=50),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return train(SHORT, tmp_path_factory.mktemp("runs") / "run", data=linear_system(), quiet=True)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, without its lock file."""
    for file in finished.rglob("*"):
        if file.is_file() and file.name != ".lock":
            (tmp_path / "run" / file.relative_to(finished)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "run" / file.relative_to(finished)).write_bytes(file.read_bytes())
    return tmp_path / "run"


def test_of_simultaneous_runs_one_holds_the_folder_and_its_record(tmp_path):
    """Each time, the record is that of the run that holds the lock, and the others are told so in one sentence."""
    data, count = linear_system(), 4
    with ThreadPoolExecutor(count) as pool:
        for attempt in range(20):
            out, start, end = tmp_path / str(attempt), threading.Barrier(count), threading.Barrier(count)

            def claim(seed, out=out, start=start, end=end):
                start.wait()
                try:
                    with claimed(out, replace(SMALL, seed=seed), data):
                        end.wait()
                        return seed
                except ValueError as error:
                    end.wait()
                    return str(error)

            results = list(pool.map(claim, range(count)))
            (winner,) = (x for x in results if isinstance(x, int))
            assert read_record(out)["settings"]["seed"] == winner
            for told in results:
                assert told == winner or told.startswith(f"{out}: expected a ")
            assert not list(out.glob("*.part"))


def test_a_kill_between_lock_and_record_leaves_a_usable_folder(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".lock").touch()
    with claimed(tmp_path, SMALL, linear_system()):
        assert read_record(tmp_path)["settings"]["seed"] == SMALL.seed


def test_nothing_is_written_into_a_foreign_folder(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "mine.pt").touch()
    with pytest.raises(ValueError, match="expected a new or empty folder"), claimed(tmp_path, SMALL, linear_system()):
        pass
    assert [p.name for p in tmp_path.rglob("*")] == ["checkpoints", "mine.pt"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"settings: [",
        b"- a\n- b\n",
        b"settings: {}\n",
        b"settings: {}\ndata: {name: x}\n",
        b"settings: 3\ndata: {name: x, digest: y}\n",
        b"settings: {rebrac: 3}\ndata: {name: x, digest: y}\n",
        b"settings: {rebrac: {hidden: [a]}}\ndata: {name: x, digest: y}\n",
        b"settings: {rebrac: {discount: 0.9x}}\ndata: {name: x, digest: y}\n",
        b"settings: {mine: 3}\ndata: {name: x, digest: y}\n",
        b"settings: {1: 3}\ndata: {name: x, digest: y}\n",
        b"settings: {}\ndata: {name: 3, digest: y}\n",
        b"settings: {}\ndata: {name: x, digest: y, ref_min: low}\n",
        b"settings: !!int x\ndata: {}\n",
        b"a: 2000-99-99\n",
        b"a: !!python/object:os.system {}\n",
        b"\xff\xfe\x00settings",
    ],
)
def test_a_damaged_record_is_one_sentence_everywhere(copied, capsys, content):
    (copied / "config.yaml").write_bytes(content)
    for call in (lambda: load_run(copied), lambda: train(SHORT, copied, data=linear_system(), quiet=True)):
        with pytest.raises(ValueError, match=r"config\.yaml: .*; copy the file again, correct it, or train"):
            call()
    assert cli.main(["eval", str(copied)]) == 2
    assert capsys.readouterr().err.startswith(f"jacrec: {copied / 'config.yaml'}: ")


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "foreign", "no class"])
def test_a_damaged_network_is_told_and_training_restores_it(copied, finished, damage):
    path = copied / "reward.safetensors"
    raw = path.read_bytes()
    if damage == "foreign":
        save_file(load_file(path), path)
    elif damage == "no class":
        save_file(load_file(path), path, metadata={"jacrec": "{}"})
    else:
        path.write_bytes({"empty": b"", "cut": raw[:-40], "flipped": raw[:-41] + bytes([raw[-41] ^ 1]) + raw[-40:]}[damage])
    with pytest.raises(ValueError, match=r"reward\.safetensors: expected .*`jacrec train` restores it"):
        load_run(copied)
    path.unlink()
    train(SHORT, copied, data=linear_system(), quiet=True)
    assert same_bits(weights(copied), weights(finished))


def test_networks_of_earlier_versions_load(copied, finished):
    for part in ("actor", "critic", "dynamics", "reward"):
        path = copied / f"{part}.safetensors"
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["jacrec"])
        assert len(header.pop("checksum")) == 8
        save_file(load_file(path), path, metadata={"jacrec": json.dumps(header)})
    load_run(copied)
    assert same_bits(weights(copied), weights(finished))


@pytest.mark.parametrize("damage", [b"", b"notes", None])
def test_a_damaged_checkpoint_is_told_and_can_be_deleted(copied, finished, damage):
    path = copied / "checkpoints" / "reward.safetensors"
    if damage is None:
        save_file(load_file(path), path)  # without the number of updates
    else:
        path.write_bytes(damage)
    with pytest.raises(
        ValueError, match=r"checkpoints/reward\.safetensors: .*delete it: its stage is then trained from the start"
    ):
        train(SHORT, copied, data=linear_system(), quiet=True)
    path.unlink()
    train(SHORT, copied, data=linear_system(), quiet=True)
    assert same_bits(weights(copied), weights(finished))


@pytest.mark.parametrize(
    "line", [b"notes\n", b"[1]\n", b'{"stage": "reward"}\n', b'{"stage": 1, "update": 2, "seconds": 3}\n', b"\xff\n"]
)
def test_foreign_lines_of_metrics_are_told(copied, line):
    path = copied / "metrics.jsonl"
    path.write_bytes(line + path.read_bytes())
    for call in (lambda: train(SHORT, copied, data=linear_system(), quiet=True), lambda: read_metrics(path)):
        with pytest.raises(ValueError, match=r"metrics\.jsonl: expected .*delete"):
            call()


def test_a_run_trained_for_longer_equals_one_of_that_length(copied, tmp_path):
    with pytest.raises(ValueError, match=r"rebrac\.updates = 30 in the run, 50 now.*; train the run for longer \(--extend\)"):
        train(LONGER, copied, data=linear_system(), quiet=True)
    train(LONGER, copied, data=linear_system(), extend=True, quiet=True)
    whole = train(LONGER, tmp_path / "whole", data=linear_system(), quiet=True)
    assert same_bits(weights(copied), weights(whole))
    assert load_run(copied).config == LONGER
    # apart from the line at the former end, whose means the next one does not contain
    assert [x for x in metrics(copied) if x["update"] not in (30, 40)] == [
        x for x in metrics(whole) if x["update"] not in (30, 40)
    ]
    with pytest.raises(ValueError, match=r"rebrac\.updates = 50 in the run, 30 now"):
        train(SHORT, copied, data=linear_system(), extend=True, quiet=True)


def test_only_updates_may_grow(copied):
    with pytest.raises(ValueError, match=r"got another run: seed = 5 in the run, 6 now"):
        train(replace(LONGER, seed=6), copied, data=linear_system(), extend=True, quiet=True)
    assert load_run(copied).config == SHORT


def test_an_interrupted_extension_is_an_unfinished_run(copied):
    def stop(line):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        train(LONGER, copied, data=linear_system(), extend=True, quiet=True, on_log=stop)
    with pytest.raises(FileNotFoundError, match="without actor, critic, dynamics"):
        load_run(copied)
    train(LONGER, copied, data=linear_system(), quiet=True)
    assert load_run(copied).config == LONGER


def test_a_tilted_world_model_keeps_its_policy(tmp_path):
    tilted = replace(SHORT, dynamics=replace(SHORT.dynamics, tilt=0.5))
    with claimed(tmp_path, tilted, linear_system()):
        pass
    longer = replace(tilted, rebrac=replace(tilted.rebrac, updates=50))
    with pytest.raises(ValueError, match=r"dynamics\.tilt"), claimed(tmp_path, longer, linear_system(), extend=True):
        pass


def test_differences_are_those_of_single_entries():
    there, here = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4, "d": 3}, "e": 5}
    assert differences(there, here) == {"b.c": (2, 4), "e": (None, 5)}


@pytest.mark.parametrize("named", ["", "hopper-medium-v2"])
def test_a_run_of_arrays_is_never_told_to_load_its_data(tmp_path, named):
    """Neither an unfinished run nor one of other settings is referred to a data set that does not exist."""
    rng, n = np.random.default_rng(0), 400
    states, actions = rng.standard_normal((n, 3)), rng.uniform(-1, 1, (n, 2))
    data = from_arrays(states, actions, rng.standard_normal(n), np.zeros(n, bool), lengths=[40] * 10)
    config = replace(SHORT, data=named)
    train(config, tmp_path, data=data, stages=("rebrac",), quiet=True)
    with pytest.raises(FileNotFoundError, match=r"without dynamics, reward; .*data=\.\.\.") as caught:
        load_run(tmp_path)
    told = [str(caught.value)]
    with pytest.raises(ValueError, match="seed = 5 in the run, 3 now") as caught:
        train(replace(config, seed=3), tmp_path, data=data, quiet=True)
    told.append(str(caught.value))
    assert not any("jacrec train" in text or "--settings" in text for text in told)
    if not named:
        with pytest.raises(ValueError, match=r"^data: expected the name or path .* data=\.\.\."):
            train(config, tmp_path, quiet=True)


@pytest.mark.parametrize(
    ("verb", "content", "key"),
    [
        ("tune", "a: {horizon: 1}\nb: {horizon: 2}\na: {horizon: 3}\n", "a"),
        ("tune", "a:\n  horizon: 1\n  lr: 1.0e-3\n  horizon: 2\n", "horizon"),
        ("rehearse", "a: {horizon: 1}\na: {horizon: 3}\n", "a"),
        ("sweep", "name: s\nseeds: [0]\ntasks: {x: {data: y}}\nseeds: [1]\n", "seeds"),
        ("train", "rebrac: {updates: 3}\nrebrac: {tau: 0.1}\n", "rebrac"),
    ],
)
def test_a_key_given_twice_is_named(copied, tmp_path, capsys, verb, content, key):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    args = {
        "tune": [str(copied), "--candidates", str(file)],
        "rehearse": [str(copied), "--candidates", str(file)],
        "sweep": [str(file), "--out", str(tmp_path / "study")],
        "train": ["x.hdf5", "--settings", str(file), "--out", str(tmp_path / "new")],
    }
    assert cli.main([verb, *args[verb]]) == 2
    told = capsys.readouterr().err
    assert f"{file}: expected each key once, got {key!r} in lines " in told


def test_merged_mappings_may_override(tmp_path):
    (tmp_path / "own.yaml").write_text("base: &base {horizon: 1, lr: 0.1}\nmine: {<<: *base, lr: 0.2}\n")
    assert read_yaml(tmp_path / "own.yaml", "")["mine"] == {"horizon": 1, "lr": 0.2}


def test_merges_of_merged_mappings_have_no_key_twice(tmp_path):
    path = tmp_path / "merged.yaml"
    path.write_text("base: &b {a: 1}\nx: {deep: {y: &y {<<: *b, a: 2}}}\nz: {<<: *y}\n")
    assert read_yaml(path, "correct it")["z"] == {"a": 2}
