"""Commands stopped at random moments and repeated: they must end with what they give undisturbed.

    python tests/chaos.py --kills 300 --json benchmarks/results/chaos.json

train, eval, tune, rehearse, sweep, data make and deploy, with a race and without, each with tiny budgets. A trial starts a
command in a new folder, stops it after a random time by SIGKILL, SIGTERM or SIGINT (Ctrl-C), up to four times in a row, lets it
finish, and compares: networks, metrics, returns, choices, transitions and data sets must be those of an undisturbed command, bit
for bit, without a duplicate and without a half file. None may print a traceback, or run for a minute after it was asked to stop.
The result is written after every trial; a file with fewer kills is continued, and names the kills at each commit. Not part of
the test suite: 300 kills take half an hour.

Commands run in forked copies of this process, so that kills meet the work instead of the imports; a sweep's workers are
new processes.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"  # before torch is imported: a thread pool does not survive a fork

KILLS_PER_TRIAL = 4
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PATIENCE = 60.0
"""seconds within which a command has to end when asked to"""
SMALL = "--rebrac.hidden 16 16 --rebrac.batch-size 32 --dynamics.hidden 16 16 --dynamics.steps 2 --dynamics.batch-size 32"
TRAINING = f"{SMALL} --dynamics.eval-transitions 50 --reward.hidden 16 16 --reward.batch-size 32 --reward.eval-transitions 50"
UPDATES = "--rebrac.updates 200 --dynamics.updates 200 --reward.updates 200 --log-every 20 --checkpoint-every 15 --threads 1"
CONTROLLER = "--mpc.horizon 1 --mpc.particles 2 --mpc.lr 1e-3"
STUDY = """\
name: chaos
tasks: {hopper-random: {data: jacrec/hopper-random-v0}}
seeds: [0, 1]
training:
  rebrac: {hidden: [16, 16], batch_size: 32, updates: 100}
  dynamics: {hidden: [16, 16], steps: 2, batch_size: 32, updates: 100, eval_transitions: 50}
  reward: {hidden: [16, 16], batch_size: 32, updates: 100, eval_transitions: 50}
  log_every: 50
  checkpoint_every: 20
evaluation: {episodes: 3, seed: 7, probe_every: 5, probe_particles: 2}
contestants:
  h0: {horizon: 0, lr: 1e-4}
  mpc: {horizon: 1, particles: 2, lr: 1e-4}
"""


CANDIDATES = """\
a: {horizon: 1, particles: 2, lr: 1e-3}
b: {horizon: 2, particles: 3, lr: 1e-2, carry: persist}
"""
CRITIC_ALONE = """\
c: {horizon: 0, lr: 1e-3}
d: {horizon: 0, lr: 1e-2}
"""


@dataclass(frozen=True)
class Command:
    """A command, and what it leaves."""

    arguments: Callable[[Path, Path], str]
    """(folder of the trial, folder of what all trials read) -> arguments"""
    result: Callable[[Path], object]
    """everything that must be as without kills, from the folder of a trial"""


def networks(folder: Path) -> dict[str, int]:
    """Checksums of the networks below a folder; equal networks are equal files."""
    return {str(p.relative_to(folder)): zlib.crc32(p.read_bytes()) for p in sorted(folder.rglob("*.safetensors"))}


def trained(folder: Path) -> object:
    """Networks and metrics of a run, without the times."""
    lines = [json.loads(text) for text in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    own = sorted(({k: v for k, v in line.items() if k != "seconds"} for line in lines), key=lambda x: (x["stage"], x["update"]))
    assert len({(line["stage"], line["update"]) for line in lines}) == len(lines), "a line of metrics appears twice"
    return {k: v for k, v in networks(folder / "run").items() if "checkpoints" not in k}, own


def evaluated(folder: Path) -> object:
    """Returns of an evaluation."""
    return played(json.loads((folder / "evaluation.json").read_text())["contestants"])


def played(contestants: dict) -> object:
    """What does not depend on the time."""
    return {name: {k: own[k] for k in ("seeds", "returns", "scores", "lengths")} for name, own in contestants.items()}


def swept(folder: Path) -> object:
    """Networks and returns of a study."""
    cells = folder / "study" / "cells"
    plays = {str(p.relative_to(cells)): json.loads(p.read_text()) for p in sorted(cells.rglob("plays/*.json"))}
    assert not any(p.name.endswith(".failed.json") for p in cells.rglob("*")), "a job failed"
    return {k: v for k, v in networks(cells).items() if "checkpoints" not in k}, played(plays)


def made(folder: Path) -> object:
    """Checksum of a data set's transitions."""
    from jacrec.data.readers.load import load
    from jacrec.training.folder import digest

    os.environ["MINARI_DATASETS_PATH"] = str(folder / "data")
    found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.hdf5"))
    assert len(found) == 1, f"expected one data set, got {found}"
    assert not list((folder / "data").glob(".making-*")), "a folder of an interrupted command is left"
    return digest(load("jacrec/hopper-medium-replay-v0"))


def deployed(folder: Path) -> object:
    """Transitions and returns of a deployment."""
    record = json.loads((folder / "deploy" / "deploy.json").read_text())
    episodes = [(e["seed"], e["return"], e["length"]) for e in record["episodes"]]
    return zlib.crc32((folder / "deploy" / "replay.bin").read_bytes()), record["transitions"], episodes


def raced(folder: Path) -> object:
    """The same of a deployment with a race, and the race."""
    record = json.loads((folder / "deploy" / "deploy.json").read_text())
    return deployed(folder), [(e["player"], e["lost"]) for e in record["episodes"]], record["race"]


def tuned(folder: Path) -> object:
    """Choices of a tuning, and the episodes that led there."""
    record = json.loads((folder / "tuning.json").read_text())
    return record["choice"], record["played"], (folder / "tuned.yaml").read_text()


def rehearsed(folder: Path) -> object:
    """Choice of a rehearsal, and its imagined returns."""
    record = json.loads((folder / "rehearsal.json").read_text())
    return record["choice"], record["gains"], {name: own["returns"] for name, own in record["episodes"].items()}


COMMANDS = {
    "train": Command(lambda out, _: f"train jacrec/hopper-random-v0 --out {out}/run {TRAINING} {UPDATES}", trained),
    "eval": Command(
        lambda out, given: f"eval {given}/run --out {out} --episodes 4 --rows 2 --no-video {CONTROLLER}",
        evaluated,
    ),
    "data make": Command(lambda out, _: "data make hopper medium-replay --steps 6000", made),
    "deploy": Command(
        lambda out, given: (
            f"deploy {given}/run --out {out}/deploy --episodes 6 --step-seconds 0.004 --online.no-enabled {CONTROLLER}"
        ),
        deployed,
    ),
    "deploy --race": Command(
        lambda out, given: (
            f"deploy {given}/run --out {out}/deploy --episodes 12 --step-seconds 0.002 --online.no-enabled --race {given}/candidates.yaml"
        ),
        raced,
    ),
    "tune": Command(
        lambda out, given: (
            f"tune {given}/run --out {out} --candidates {given}/candidates.yaml {given}/critic_alone.yaml --budget 12 --round 2"
        ),
        tuned,
    ),
    "rehearse": Command(
        lambda out, given: f"rehearse {given}/run --out {out} --candidates {given}/candidates.yaml --steps 60 --episodes 3",
        rehearsed,
    ),
    "sweep": Command(lambda out, given: f"sweep {given}/chaos.yaml --out {out}/study --workers 2", swept),
}


def start(arguments: str, folder: Path, data: Path) -> int:
    """Run a command in a forked copy of this process, with its output in `folder`/output; the copy's id."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the command begins
    try:
        os.setsid()
        with (folder / "output").open("a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.environ["MINARI_DATASETS_PATH"] = str(data)
        os.chdir(folder)
        sys.argv = ["jacrec", *arguments.split()]
        from jacrec import cli

        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = cli.main()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def stop_after(process: int, seconds: float, number: signal.Signals) -> bool:
    """Send a signal to a process after a time, and wait for its end; whether it was still running.

    Raises:
        AssertionError: it runs on.
    """
    if ended_within(process, seconds):
        return False
    os.kill(process, number)
    if not ended_within(process, PATIENCE):
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        raise AssertionError(f"still running {PATIENCE:g} s after {number.name}")
    return True


def ended_within(process: int, seconds: float) -> bool:
    """Wait for the end of a process, for a time at most; whether it has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(process, os.WNOHANG)[0]:
            return True
        time.sleep(0.002)
    return False


def finish(arguments: str, folder: Path, data: Path) -> None:
    """Run a command to its end."""
    status = os.waitpid(start(arguments, folder, data), 0)[1]
    if status != 0:
        raise AssertionError(f"status {status}: {(folder / 'output').read_text()[-2000:]}")


def check(folder: Path, command: Command, expected: object) -> None:
    """Raise AssertionError if the result is not the expected one, half a file is left, or a traceback was printed."""
    output = (folder / "output").read_text()
    assert "Traceback" not in output, output[-2000:]
    halves = [str(p) for p in folder.rglob("*.part")]
    assert not halves, f"half files: {halves}"
    result = json.loads(json.dumps(command.result(folder)))
    assert result == expected, f"expected {str(expected)[:600]}, got {str(result)[:600]}"


def trial(command: Command, folder: Path, given: Path, seconds: float, rng: random.Random) -> int:
    """Stop a command some times, and let it finish; the number of signals that met it running."""
    folder.mkdir(parents=True)
    data = folder / "data" if command.result is made else given / "data"
    kills = 0
    for _ in range(rng.randint(1, KILLS_PER_TRIAL)):
        process = start(command.arguments(folder, given), folder, data)
        kills += stop_after(process, rng.uniform(0.0, 1.1 * seconds), rng.choice(SIGNALS))
    if not list(
        folder.glob("data/jacrec/*/data/metadata.json")
    ):  # or it has finished, and would refuse to replace its data set
        finish(command.arguments(folder, given), folder, data)
    return kills


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="kills in all, shared by the commands")
    parser.add_argument("--json", type=Path, required=True, help="file of the result, continued if it exists")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    root = Path(__file__).parent.parent
    sys.path[0] = str(root)  # tests/ itself has a folder named as a package is
    from benchmarks import harness

    # all that the commands import, before the first fork
    for verb in ("data", "train", "eval", "tune", "rehearse", "deploy", "sweep"):
        __import__(f"jacrec.commands.{verb}")
    where = harness.environment() | {"command": " ".join(["python", "tests/chaos.py", *sys.argv[1:]])}
    before = json.loads(options.json.read_text()) if options.json.is_file() else {}
    done = before.get("commands", {})
    commits = before.get("kills by commit", {before["commit"]: before["kills"]} if before else {})
    earlier = sum(own["kills"] for own in done.values()) - commits.get(where["commit"], 0)
    rng = random.Random(f"{options.seed} {sum(own['kills'] for own in done.values())}")
    root = Path(tempfile.mkdtemp(prefix="chaos-"))
    given = root / "given"
    given.mkdir()
    for name, text in (("chaos", STUDY), ("candidates", CANDIDATES), ("critic_alone", CRITIC_ALONE)):
        (given / f"{name}.yaml").write_text(text)
    finish("data make hopper random --steps 1000", given, given / "data")
    finish(COMMANDS["train"].arguments(given, given), given, given / "data")
    expected, seconds = {}, {}
    for name, command in COMMANDS.items():
        for repeat in range(2):  # the second time, kernels are compiled
            folder = root / "undisturbed" / f"{name.replace(' ', '-')}-{repeat}"
            folder.mkdir(parents=True)
            began = time.monotonic()
            finish(command.arguments(folder, given), folder, folder / "data" if command.result is made else given / "data")
            seconds[name] = time.monotonic() - began
            result = json.loads(json.dumps(command.result(folder)))
            assert expected.setdefault(name, result) == result, f"{name}: two undisturbed commands differ"
        print(f"{name}: {seconds[name]:.1f} s undisturbed", flush=True)
    share = options.kills // len(COMMANDS)
    number = 0
    while open_ := [name for name in COMMANDS if done.get(name, {"kills": 0})["kills"] < share]:
        for name in open_:
            own = done.setdefault(name, {"kills": 0, "trials": 0, "failures": []})
            number += 1
            folder = root / "trials" / str(number)
            try:
                own["kills"] += trial(COMMANDS[name], folder, given, seconds[name], rng)
                check(folder, COMMANDS[name], expected[name])
                shutil.rmtree(folder)
            except (AssertionError, ValueError, OSError, KeyError) as error:
                own["failures"].append(f"{type(error).__name__}: {error}")
                print(f"{name}: {own['failures'][-1]}\nkept: {folder}", flush=True)
            own["trials"] += 1
            total = sum(x["kills"] for x in done.values())
            failures = sum(len(x["failures"]) for x in done.values())
            commits[where["commit"]] = total - earlier
            counts = {"kills": total, "asked": options.kills, "failures": failures, "kills by commit": commits}
            result = {**where, **counts, "commands": done}
            options.json.write_text(json.dumps(result, indent=1) + "\n")
            print(f"{total} kills, {failures} failures ({name}: {own['kills']})", flush=True)
    if not any(own["failures"] for own in done.values()):
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
