"""Several seeds into several folders: as processes, as one batched model, and from one to the other."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jacrec.cli import main
from jacrec.training import load_run, train, train_seeds
from jacrec.training.folder import read_record
from jacrec.training.seeds import folder_of
from tests.training.test_run import SMALL, metrics, mind_interruptions, same_bits, weights
from tests.training_data import linear_system

SEEDS = (5, 7)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[int, Path]:
    """Each seed trained by itself, on one thread."""
    root = tmp_path_factory.mktemp("alone")
    return {s: train(replace(SMALL, seed=s), root / str(s), data=linear_system(), quiet=True) for s in SEEDS}


def close(folder: Path, expected: Path) -> None:
    """The same run up to single precision's rounding over sixty updates."""
    ours, theirs = weights(folder), weights(expected)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)
    for a, b in zip(metrics(folder), metrics(expected), strict=True):
        assert a.pop("stage") == b.pop("stage")
        assert a == pytest.approx(b, rel=1e-3)


@pytest.mark.slow
def test_processes_give_each_seed_the_bits_that_it_has_alone(alone, tmp_path):
    seen = []
    folders = train_seeds(SMALL, SEEDS, tmp_path, data=linear_system(), quiet=True, on_log=seen.append)
    assert folders == [tmp_path / "seed-5", tmp_path / "seed-7"]
    for seed, folder in zip(SEEDS, folders, strict=True):
        assert same_bits(weights(folder), weights(alone[seed]))
        assert metrics(folder) == metrics(alone[seed])
        assert read_record(folder) == read_record(alone[seed])
    assert sorted({line["seed"] for line in seen}) == list(SEEDS)
    assert len(seen) == 2 * 9


def test_a_batched_model_gives_each_seed_what_it_is_alone(alone, tmp_path):
    seen = []
    folders = train_seeds(
        SMALL, SEEDS, tmp_path / "s{seed}", data=linear_system(), batched=True, quiet=True, on_log=seen.append
    )
    assert [folder.name for folder in folders] == ["s5", "s7"]
    for seed, folder in zip(SEEDS, folders, strict=True):
        close(folder, alone[seed])
        assert load_run(folder).config == replace(SMALL, seed=seed)
    assert len(seen) == 2 * 9


def test_seeds_move_between_a_batched_model_and_being_alone(alone, tmp_path):
    """One seed is ahead, trained alone; the group levels them; what is left of another stage each is taught alone."""
    folders = [folder_of(tmp_path, seed) for seed in SEEDS]
    train(replace(SMALL, seed=SEEDS[0]), folders[0], stages=["rebrac"], data=linear_system(), quiet=True)
    train_seeds(SMALL, SEEDS, tmp_path, stages=["rebrac", "reward"], data=linear_system(), batched=True, quiet=True)
    for seed, folder in zip(SEEDS, folders, strict=True):
        train(replace(SMALL, seed=seed), folder, data=linear_system(), quiet=True)
        close(folder, alone[seed])
    own = {k: v for k, v in weights(folders[0]).items() if k.startswith(("actor", "critic", "dynamics"))}
    assert same_bits(own, {k: v for k, v in weights(alone[SEEDS[0]]).items() if k in own})


@pytest.mark.parametrize("batched", [True, False])
def test_what_cannot_be_trained_is_said(tmp_path, batched):
    (tmp_path / "seed-7").mkdir()
    (tmp_path / "seed-7" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="seed-7: expected a new or empty folder or a run"):
        train_seeds(SMALL, SEEDS, tmp_path, data=linear_system(), batched=batched, quiet=True)
    assert (tmp_path / "seed-7" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "seed-5" / "reward.safetensors").exists() is not batched  # the other process goes on


def test_a_diverging_seed_is_an_error(tmp_path):
    data = linear_system()
    data.reward[:] = 1e38
    with pytest.raises(FloatingPointError, match="rebrac, update 20: expected finite metrics") as caught:
        train_seeds(SMALL, SEEDS, tmp_path, stages=["rebrac"], data=data, batched=True, quiet=True)
    assert caught.value.__notes__ == [f"(in {tmp_path / 'seed-5'})"]


class Deadly:
    """What ends the process that receives it, as a system without memory would."""

    def __reduce__(self):
        return os._exit, (3,)


def test_a_process_that_dies_is_told(tmp_path):
    with pytest.raises(ChildProcessError, match="expected a finished training, its process ended with code 3"):
        train_seeds(SMALL, (5,), tmp_path, data=Deadly(), quiet=True)  # pyright: ignore[reportArgumentType]


def test_all_that_failed_is_told(tmp_path, monkeypatch):
    def failing(work, heard, stop):
        raise FloatingPointError(f"seed {work[0].seed} diverged")

    monkeypatch.setattr("jacrec.training.seeds._watch", failing)
    with pytest.raises(FloatingPointError, match=r"seed \d diverged") as caught:
        train_seeds(SMALL, SEEDS, tmp_path, quiet=True)
    first = int(str(caught.value).split()[1])
    (second,) = set(SEEDS) - {first}
    assert caught.value.__notes__ == [
        f"(in {tmp_path / f'seed-{first}'})",
        f"also in {tmp_path / f'seed-{second}'}: seed {second} diverged",
    ]


@pytest.mark.parametrize(
    ("seeds", "options", "message"),
    [
        ((), {}, "seeds: expected one or more distinct numbers, got"),
        ((1, 2, 1), {}, r"expected one or more distinct numbers, got \[1, 2, 1\]"),
        ((1,), {"stages": ["critic"]}, "stages: expected one of"),
        ((1,), {"at_once": 0}, "at_once: expected an integer >= 1, got 0"),
    ],
)
def test_arguments_are_checked(tmp_path, seeds, options, message):
    with pytest.raises(ValueError, match=message):
        train_seeds(SMALL, seeds, tmp_path, data=linear_system(), **options)
    assert not list(tmp_path.iterdir())


LONG = replace(SMALL, rebrac=replace(SMALL.rebrac, updates=3000), checkpoint_every=3000)


def start(folder: Path, batched: bool) -> subprocess.Popen:
    """Seeds trained by a process of its own, which prints the seed of every line in one write each; both have begun."""
    code = (
        "import sys; from tests.training.test_seeds import *\n"
        "if __name__ == '__main__':\n"
        f"    train_seeds(LONG, SEEDS, sys.argv[1], stages=['rebrac'], data=linear_system(), batched={batched}, quiet=True,\n"
        "                on_log=lambda line: print(f\"{line['seed']}\\n\", end='', flush=True))\n"
    )
    script = folder.with_suffix(".py")
    script.write_text(code)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=mind_interruptions,
    )
    assert process.stdout is not None
    begun = set()
    while begun != set(SEEDS):
        begun.add(int(process.stdout.readline()))
    return process


@pytest.mark.slow
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "processes"])
def test_an_interruption_keeps_every_update(tmp_path, batched):
    folder = tmp_path / "runs"
    with start(folder, batched) as process:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    at_stop = {seed: len((folder_of(folder, seed) / "metrics.jsonl").read_text().splitlines()) for seed in SEEDS}
    assert all((folder_of(folder, seed) / "checkpoints" / "rebrac.safetensors").is_file() for seed in SEEDS)
    seen = []
    train_seeds(LONG, SEEDS, folder, stages=["rebrac"], data=linear_system(), batched=batched, quiet=True, on_log=seen.append)
    assert len(seen) == 2 * 150 - sum(at_stop.values())  # nothing that had been written was done again


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(tmp_path):
    folder = tmp_path / "runs"
    with start(folder, False) as process:
        process.send_signal(signal.SIGKILL)
    for seed in SEEDS:
        config = replace(LONG, seed=seed)
        for _ in range(300):
            try:
                train(config, folder_of(folder, seed), stages=["rebrac"], data=linear_system(), quiet=True)
            except ValueError as error:  # it has not finished its update yet
                if "expected a run that is not being trained" not in str(error):
                    raise
                time.sleep(0.2)
            else:
                break
    assert all((folder_of(folder, seed) / "actor.safetensors").is_file() for seed in SEEDS)


def test_the_command(tmp_path, capsys, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "jacrec.commands.train.train_seeds",
        lambda config, seeds, out, **options: calls.append((config, seeds, out, options)) or [folder_of(out, s) for s in seeds],
    )
    assert main(["train", "jacrec/hopper/medium-v0", "--seeds", "10", "11", "--reward.updates", "7", "--stages", "reward"]) == 0
    config, seeds, out, options = calls[0]
    assert (config.data, config.reward.updates) == ("jacrec/hopper/medium-v0", 7)
    assert (seeds, out, options) == ((10, 11), "runs/hopper-medium-v0-s{seed}", {"stages": ("reward",)})
    # --stages reward leaves the rest to be done
    assert "trained: runs/hopper-medium-v0-s11\nnext: the same with --stages rebrac dynamics" in capsys.readouterr().out
    assert main(["train", "x", "--seeds", "1", "2", "--parallel_stages", "2"]) == 2
    assert "--parallel_stages: expected 1 with --seeds" in capsys.readouterr().err
