"""Several seeds into several folders: as processes, as one batched model, and switching between them."""

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
from jacrec.training.seeds import seed_folder
from tests.training.test_run import SMALL, metrics, restore_sigint, same_bits, weights
from tests.training_data import linear_system

SEEDS = (5, 7)
A_SEEDS_PROCESS = """
import ctypes
import os
import signal
import time

from jacrec.training import seeds

seeds.train = lambda *args, **options: (callback(), time.sleep(30))


class Pipe:
    def send(self, message):
        print(message, flush=True)
        if not isinstance(message, str):
            raise BrokenPipeError

    def close(self):
        print("closed", flush=True)


@ctypes.CFUNCTYPE(None)
def callback():
    if INTERRUPT == "compiling":
        signal.raise_signal(signal.SIGTERM)


def starting():
    if INTERRUPT == "starting":
        os.kill(os.getpid(), signal.SIGTERM)


seeds._exit_with_parent = starting
if INTERRUPT == "gone":
    seeds.train = lambda *args, **options: options["on_log"](1)
seeds._process_main(None, None, [], None, 1, False, None, Pipe())
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[int, Path]:
    """Each seed trained by itself, on one thread."""
    root = tmp_path_factory.mktemp("alone")
    return {s: train(replace(SMALL, seed=s), root / str(s), data=linear_system(), quiet=True) for s in SEEDS}


def assert_close(folder: Path, expected: Path) -> None:
    """The same run up to single-precision rounding over sixty updates."""
    ours, theirs = weights(folder), weights(expected)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)
    for a, b in zip(metrics(folder), metrics(expected), strict=True):
        assert a.pop("stage") == b.pop("stage")
        assert a == pytest.approx(b, rel=1e-3)


@pytest.mark.slow
def test_processes_are_bit_identical_to_training_alone(alone, tmp_path):
    seen = []
    folders = train_seeds(SMALL, SEEDS, tmp_path, data=linear_system(), quiet=True, on_log=seen.append)
    assert folders == [tmp_path / "seed-5", tmp_path / "seed-7"]
    for seed, folder in zip(SEEDS, folders, strict=True):
        assert same_bits(weights(folder), weights(alone[seed]))
        assert metrics(folder) == metrics(alone[seed])
        assert read_record(folder) == read_record(alone[seed])
    assert sorted({line["seed"] for line in seen}) == list(SEEDS)
    assert len(seen) == 2 * 9


def test_a_batched_model_equals_training_alone_up_to_rounding(alone, tmp_path):
    seen = []
    folders = train_seeds(
        SMALL, SEEDS, tmp_path / "s{seed}", data=linear_system(), batched=True, quiet=True, on_log=seen.append
    )
    assert [folder.name for folder in folders] == ["s5", "s7"]
    for seed, folder in zip(SEEDS, folders, strict=True):
        assert_close(folder, alone[seed])
        assert load_run(folder).config == replace(SMALL, seed=seed)
    assert len(seen) == 2 * 9


def test_seeds_can_switch_between_a_batched_model_and_training_alone(alone, tmp_path):
    """One seed is trained ahead alone; the group catches up; the remaining stage of each is trained alone."""
    folders = [seed_folder(tmp_path, seed) for seed in SEEDS]
    train(replace(SMALL, seed=SEEDS[0]), folders[0], stages=["rebrac"], data=linear_system(), quiet=True)
    train_seeds(SMALL, SEEDS, tmp_path, stages=["rebrac", "reward"], data=linear_system(), batched=True, quiet=True)
    for seed, folder in zip(SEEDS, folders, strict=True):
        train(replace(SMALL, seed=seed), folder, data=linear_system(), quiet=True)
        assert_close(folder, alone[seed])
    own = {k: v for k, v in weights(folders[0]).items() if k.startswith(("actor", "critic", "dynamics"))}
    assert same_bits(own, {k: v for k, v in weights(alone[SEEDS[0]]).items() if k in own})


@pytest.mark.parametrize("batched", [True, False])
def test_a_foreign_folder_is_rejected(tmp_path, batched):
    (tmp_path / "seed-7").mkdir()
    (tmp_path / "seed-7" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="seed-7: expected a new or empty folder"):
        train_seeds(SMALL, SEEDS, tmp_path, data=linear_system(), batched=batched, quiet=True)
    assert (tmp_path / "seed-7" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "seed-5" / "reward.safetensors").exists() is not batched  # the other process finishes


def test_a_diverging_seed_raises(tmp_path):
    data = linear_system()
    data.reward[:] = 1e38
    with pytest.raises(FloatingPointError, match=r"^rebrac, update 20: expected finite metrics") as caught:
        train_seeds(SMALL, SEEDS, tmp_path, stages=["rebrac"], data=data, batched=True, quiet=True)
    assert caught.value.__notes__ == [f"(in {tmp_path / 'seed-5'})"]


class Deadly:
    """Ends the process that unpickles it, as an out-of-memory kill would."""

    def __reduce__(self):
        return os._exit, (3,)


def test_a_process_that_dies_raises(tmp_path):
    with pytest.raises(ChildProcessError, match=r"seed-5: .*exit code 3"):
        train_seeds(SMALL, (5,), tmp_path, data=Deadly(), quiet=True)  # pyright: ignore[reportArgumentType]


def test_all_failed_seeds_are_named(tmp_path, monkeypatch):
    def failing(work, on_line, stop):
        raise FloatingPointError(f"seed {work[0].seed} diverged")

    monkeypatch.setattr("jacrec.training.seeds._run_process", failing)
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
        ((), {}, r"^seeds: .*distinct .*got \[\]"),
        ((1, 2, 1), {}, r"^seeds: .*distinct .*got \[1, 2, 1\]"),
        ((1,), {"stages": ["critic"]}, "^stages: .*got 'critic'"),
        ((1,), {"at_once": 0}, "^at_once: .*>= 1, got 0"),
    ],
)
def test_arguments_are_checked(tmp_path, seeds, options, message):
    with pytest.raises(ValueError, match=message):
        train_seeds(SMALL, seeds, tmp_path, data=linear_system(), **options)
    assert not list(tmp_path.iterdir())


LONG = replace(SMALL, rebrac=replace(SMALL.rebrac, updates=3000), checkpoint_every=3000)


def start_process(folder: Path, batched: bool) -> subprocess.Popen:
    """Train seeds in a process that prints the seed of every metrics line; returns once both have started."""
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
        preexec_fn=restore_sigint,
    )
    assert process.stdout is not None
    begun = set()
    while begun != set(SEEDS):
        begun.add(int(process.stdout.readline()))
    return process


def test_a_script_without_a_main_guard_is_told(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from tests.training.test_seeds import *\n"
        f"train_seeds(LONG, [7], {str(tmp_path / 'runs')!r}, data=linear_system(), batched=False, quiet=True)\n"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    told, where = done.stderr.splitlines()[-2:]
    assert told.startswith("ChildProcessError: ")
    assert 'call train_seeds under `if __name__ == "__main__":`' in told
    assert str(tmp_path / "runs") in where


@pytest.mark.slow
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "processes"])
def test_a_keyboard_interrupt_keeps_every_update(tmp_path, batched):
    folder = tmp_path / "runs"
    with start_process(folder, batched) as process:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    at_stop = {seed: len((seed_folder(folder, seed) / "metrics.jsonl").read_text().splitlines()) for seed in SEEDS}
    assert all((seed_folder(folder, seed) / "checkpoints" / "rebrac.safetensors").is_file() for seed in SEEDS)
    seen = []
    train_seeds(LONG, SEEDS, folder, stages=["rebrac"], data=linear_system(), batched=batched, quiet=True, on_log=seen.append)
    assert len(seen) == 2 * 150 - sum(at_stop.values())  # no update was repeated


@pytest.mark.slow
def test_processes_end_with_their_parent(tmp_path):
    folder = tmp_path / "runs"
    with start_process(folder, False) as process:
        process.send_signal(signal.SIGKILL)
    for seed in SEEDS:
        config = replace(LONG, seed=seed)
        for _ in range(300):
            try:
                train(config, seed_folder(folder, seed), stages=["rebrac"], data=linear_system(), quiet=True)
            except ValueError as error:  # it has not finished its update yet
                if "expected a run that is not being trained" not in str(error):
                    raise
                time.sleep(0.2)
            else:
                break
    assert all((seed_folder(folder, seed) / "actor.safetensors").is_file() for seed in SEEDS)


def test_the_command_line(tmp_path, capsys, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "jacrec.commands.train.train_seeds",
        lambda config, seeds, out, **options: (
            calls.append((config, seeds, out, options)) or [seed_folder(out, s) for s in seeds]
        ),
    )
    assert main(["train", "jacrec/hopper/medium-v0", "--seeds", "10", "11", "--reward.updates", "7", "--stages", "reward"]) == 0
    config, seeds, out, options = calls[0]
    assert (config.data, config.reward.updates) == ("jacrec/hopper/medium-v0", 7)
    assert (seeds, out, options) == (
        (10, 11),
        "runs/hopper-medium-v0-s{seed}",
        {"stages": ("reward",), "extend": False, "evaluate": None, "on_log": None},
    )
    # --stages reward leaves the other stages untrained
    assert "trained: runs/hopper-medium-v0-s11\nnext: the same with --stages rebrac dynamics" in capsys.readouterr().out
    assert main(["train", "x", "--seeds", "1", "2", "--parallel_stages", "2"]) == 2
    assert "--parallel_stages: expected 1 with --seeds" in capsys.readouterr().err


@pytest.mark.parametrize("interrupt", ["starting", "compiling", "gone"])
def test_a_seeds_process_ends_quietly_whenever_it_is_interrupted(interrupt):
    """While it starts, inside a callback of the compiler, which drops exceptions, and when nobody listens any more."""
    command = [sys.executable, "-c", A_SEEDS_PROCESS.replace("INTERRUPT", repr(interrupt))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=25, check=True)
    assert done.stdout.endswith("closed\n")
    assert done.stderr == ""
