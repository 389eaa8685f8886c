"""`jacrec train DATA`."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePath
from typing import Annotated, Literal

import tyro
import yaml
from tyro.conf import Positional

from jacrec.commands.options import refuse_unused
from jacrec.training.config import TrainConfig, from_dict, published_name, to_dict
from jacrec.training.run import STAGES, train, untrained_stages
from jacrec.training.seeds import train_seeds

Stage = Literal["rebrac", "dynamics", "reward"]


@dataclass(frozen=True)
class Settings(TrainConfig):
    """TrainConfig with its data set named elsewhere."""

    data: tyro.conf.Suppress[str] = ""


@dataclass(frozen=True)
class Train:
    """Train policy, critic, world model and reward model into a run folder; an interrupted run is gone on with.

    ReBRAC's published settings are taken where the data set is one of D4RL's 24.
    """

    source: Annotated[Positional[str], tyro.conf.arg(metavar="DATA")]
    """D4RL's name of one of its 24 (`jacrec data get`), Minari id, or path of a D4RL-layout HDF5 file"""
    out: Path | None = None
    """the run's folder, runs/DATA-sSEED unless told"""
    settings: Path | None = None
    """YAML file of settings, which the options below override"""
    stages: tuple[Stage, ...] = STAGES
    """what to train now"""
    parallel_stages: int = 1
    """how many of them at a time; small batches gain more from this than from more threads"""
    seeds: tuple[int, ...] = ()
    """several seeds instead of the one below, a folder each: seed-SEED in --out, or --out with {seed} filled in. On a GPU all
    at once as one batched model; on a CPU, where that would be slower, as processes of --threads threads each (one unless
    told), as many at a time as there are processors"""
    config: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)


def run(args: list[str]) -> int:
    """The verb."""
    # the data set and the file of settings decide the other defaults, so they are read first, wherever they stand
    first = tyro.cli(Train, args=args, prog="jacrec train")
    default = TrainConfig.for_dataset(first.source)
    if first.settings is not None:
        default = _from_file(first.settings, default)
    start = {f.name: getattr(default, f.name) for f in fields(TrainConfig)}
    chosen = tyro.cli(Train, args=args, prog="jacrec train", default=Train(first.source, config=Settings(**start)))
    refuse_unused(args, "dynamics", chosen.config.dynamics.used, f"kind {chosen.config.dynamics.kind!r}")
    published = published_name(first.source)
    if published is not None:
        print(f"defaults: ReBRAC's published settings for {published}")
    config = from_dict(to_dict(chosen.config) | {"data": chosen.source})
    if chosen.seeds:
        return _run_seeds(chosen, config)
    out = chosen.out or Path("runs") / f"{slug(chosen.source)}-s{config.seed}"
    train(config, out, stages=chosen.stages, parallel_stages=chosen.parallel_stages)
    print(f"trained: {out}\n{_next(out)}")
    return 0


def _next(run: Path) -> str:
    """What can be done with a run now."""
    missing = untrained_stages(run)
    return f"next: the same with --stages {' '.join(missing)}" if missing else f"next: jacrec eval {run}"


def _run_seeds(chosen: Train, config: TrainConfig) -> int:
    if chosen.parallel_stages > 1:
        raise ValueError("--parallel_stages: expected 1 with --seeds, which take the processors themselves; leave it out")
    folders = train_seeds(config, chosen.seeds, chosen.out or f"runs/{slug(chosen.source)}-s{{seed}}", stages=chosen.stages)
    print("\n".join(f"trained: {out}" for out in folders) + f"\n{_next(Path(folders[0]))}")
    return 0


def slug(source: str) -> str:
    """A data set's name, fit for a folder."""
    name = PurePath(source).name if source.endswith((".hdf5", ".h5", ".npz")) else source
    return re.sub(r"[^A-Za-z0-9]+", "-", name.rsplit(".hdf5")[0].removeprefix("jacrec/")).strip("-")


def _from_file(path: Path, default: TrainConfig) -> TrainConfig:
    if not path.is_file():
        raise FileNotFoundError(f"--settings: no file at {path}")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping of settings, got {type(content).__name__}")
    content = content.get("settings", content)  # a run's config.yaml serves too
    merged = to_dict(default)
    for key, value in content.items():
        merged[key] = {**merged[key], **value} if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
    return from_dict(merged)
