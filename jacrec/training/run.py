"""A run: data in, a folder out, with everything that evaluation needs.

config.yaml           settings, data (name, environment, digest), versions
metrics.jsonl         one line per stage and `log_every` updates
actor.safetensors, critic.safetensors, dynamics.safetensors, reward.safetensors
checkpoints/          one per stage, for going on
"""

import contextlib
import fcntl
import json
import os
import platform
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

import jacrec
from jacrec.data.transitions import DatasetInfo, Transitions
from jacrec.errors import expect_one_of
from jacrec.io import load_module, save_module
from jacrec.networks import Actor
from jacrec.training.config import TrainConfig, from_dict, to_dict
from jacrec.training.dynamics import DynamicsStage
from jacrec.training.loop import Metrics, OnLog, Stage, make_progress, run_stage
from jacrec.training.rebrac import ReBRACStage
from jacrec.training.reward import RewardStage
from jacrec.training.streams import seed_of
from jacrec.world import World

STAGES = ("rebrac", "dynamics", "reward")
PARTS = {"actor": "rebrac", "critic": "rebrac", "dynamics": "dynamics", "reward": "reward"}


@dataclass(frozen=True)
class Run:
    """A trained run, on the CPU, in evaluation mode."""

    policy: Actor
    """π_ψ"""
    world: World
    """f_θ, r_ξ, Q_φ and γ"""
    info: DatasetInfo
    """the data it was trained on, with the environment that evaluates it"""
    config: TrainConfig
    """its settings"""
    path: Path
    """its folder"""


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    stages: Sequence[str] = STAGES,
    data: Transitions | None = None,
    abreast: int = 1,
    quiet: bool = False,
    on_log: OnLog | None = None,
) -> Path:
    """Train the `stages` ("rebrac", "dynamics", "reward") into the folder `out`; the folder.

    A new folder is filled. One that holds a run with the same settings on the same data is gone on with: from the last
    checkpoint, to the bits that an undisturbed run gives (same machine, same number of threads). Any other is left alone.
    An interruption from the keyboard ends the update at hand and loses nothing; a kill loses what came after the last
    checkpoint.

    Args:
        stages: which to train, in this order.
        data: transitions to learn from instead of loading `config.data`.
        abreast: how many stages train at a time; they share torch's threads unless config.threads gives each its number.
            Small batches gain more from this than from more threads.
        quiet: no progress display.
        on_log: called with every line of metrics as it is written, in the thread of its stage.

    Raises:
        ValueError: `out` holds something else, or the data cannot be learned from.
        FloatingPointError: training diverged.
    """
    out = Path(out)
    for stage in stages:
        expect_one_of("stages", stage, STAGES)
    if abreast < 1:
        raise ValueError(f"abreast: expected at least 1 stage at a time, got {abreast}")
    if data is None:
        from jacrec.data.load import load

        data = load(config.data, env_id=config.env_id)
    if config.env_id is not None:
        data = replace(data, info=replace(data.info, env_id=config.env_id))
    device = torch.device(config.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: expected one that torch can use here, got {config.device!r}; `jacrec doctor` tells why not")
    ready = [make_stage(name, config, data) for name in stages]  # a setting that cannot be built leaves no folder behind
    _claim(out, config, data)
    metrics, stop, saving = Metrics(out / "metrics.jsonl", on_log), threading.Event(), threading.Lock()

    def run(stage: Stage) -> None:
        torch.set_num_threads(threads)
        checkpoint = out / "checkpoints" / f"{stage.name}.safetensors"
        try:
            finished = run_stage(stage, checkpoint, metrics, log_every=config.log_every,
                                 checkpoint_every=config.checkpoint_every, progress=progress, stop=stop)  # fmt: skip
        except BaseException:
            stop.set()
            raise
        if finished:
            with saving:
                for part, module in stage.modules().items():
                    save_module(_fresh(module), out / f"{part}.safetensors")

    # the stages run in threads even one by one: the main thread stays free to take an interruption between two updates
    threads = config.threads or max(1, torch.get_num_threads() // abreast)
    with _lock(out), torch_threads(threads), make_progress(quiet) as progress, ThreadPoolExecutor(abreast) as pool:
        try:
            for future in as_completed([pool.submit(run, stage) for stage in ready]):
                future.result()
        finally:
            stop.set()
    return out


def make_stage(name: str, config: TrainConfig, data: Transitions) -> Stage:
    """One of the `STAGES`, untrained."""
    if name == "rebrac":
        return ReBRACStage(data, config.rebrac, config.seed, config.device)
    kept, held_out = data.split(config.held_out, seed_of(config.seed, "held out"))
    if name == "dynamics":
        return DynamicsStage(kept, held_out, config.dynamics, config.seed, config.device)
    return RewardStage(kept, held_out, config.reward, config.seed, config.rebrac.reward_scale, config.device)


def load_run(path: str | Path) -> Run:
    """The run in a folder that `train` filled.

    Raises:
        FileNotFoundError: no run there, or one of its parts is not trained yet.
    """
    path = Path(path)
    record = read_record(path)
    missing = [part for part in PARTS if not (path / f"{part}.safetensors").is_file()]
    if missing:
        stages = " ".join(dict.fromkeys(PARTS[part] for part in missing))
        raise FileNotFoundError(
            f"{path}: expected a finished run, got one without {', '.join(missing)}; go on with "
            f"`jacrec train {record['settings']['data']} --settings {path / 'config.yaml'} --out {path} --stages {stages}`"
        )
    parts: dict[str, Any] = {part: load_module(path / f"{part}.safetensors") for part in PARTS}
    config = from_dict(record["settings"])
    world = World(parts["dynamics"], parts["reward"], parts["critic"], config.rebrac.discount)
    known = {f.name for f in fields(DatasetInfo)}
    info = DatasetInfo(**{k: v for k, v in record["data"].items() if k in known})
    return Run(parts["actor"], world, info, config, path)


def read_record(path: Path) -> dict[str, Any]:
    """A run's config.yaml: {"settings", "data", "versions"}.

    Raises:
        FileNotFoundError: none there.
    """
    file = Path(path) / "config.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"no run at {path} (it has no config.yaml); train one with `jacrec train`")
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def digest(data: Transitions) -> str:
    """A checksum of everything that training reads."""
    value = 0
    for name in ("state", "action", "reward", "next_state", "next_action", "terminal", "has_next_action", "episode"):
        value = zlib.crc32(np.ascontiguousarray(getattr(data, name)).data, value)
    return f"{value:08x}"


def _claim(out: Path, config: TrainConfig, data: Transitions) -> None:
    """Make `out` this run's folder, or find that it is."""
    record = {
        "settings": to_dict(config),
        "data": {
            **json.loads(json.dumps(asdict(data.info), default=float)),
            "transitions": len(data),
            "episodes": len(np.unique(data.episode)),
            "state_dim": data.state_dim,
            "action_dim": data.action_dim,
            "digest": digest(data),
        },
        "versions": {
            "jacrec": jacrec.__version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    if (out / "config.yaml").is_file():
        other = read_record(out)
        differences = _differences(other["settings"], record["settings"])
        if other["data"]["digest"] != record["data"]["digest"]:
            differences.append(f"data: {other['data']['name']} ({other['data']['digest']}) there, "
                               f"{data.info.name} ({record['data']['digest']}) here")  # fmt: skip
        if differences:
            raise ValueError(
                f"{out}: expected a new folder or a run with the same settings, got another run: {'; '.join(differences)}. "
                "Choose another folder, or go on with this one's own settings: --settings FOLDER/config.yaml"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: expected a new or empty folder or a run, got something else; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    part = out / "config.yaml.part"
    part.write_text(yaml.safe_dump(record, sort_keys=False, allow_unicode=True), encoding="utf-8")
    os.replace(part, out / "config.yaml")


def _differences(there: dict, here: dict, prefix: str = "") -> list[str]:
    found = []
    for key in dict.fromkeys([*there, *here]):
        a, b = there.get(key), here.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} = {a!r} there, {b!r} here")
    return found


def _fresh(module: nn.Module) -> nn.Module:
    """The same network with tensors of its own."""
    with torch.random.fork_rng(devices=[]):
        copy = type(module)(**module.config)  # pyright: ignore[reportArgumentType, reportCallIssue]
    copy.load_state_dict(module.state_dict())
    return copy


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Keep a second process out of the folder; the operating system lets go of the lock whatever way this one ends."""
    folder = out / "checkpoints"
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{out}: expected a run not in training, got one that is; wait for it, or stop it") from None
        yield


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
