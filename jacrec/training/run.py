"""Train a run into a folder, and load it.

config.yaml           settings, data (name, environment, digest), versions
metrics.jsonl         one line per stage and `log_every` updates
actor.safetensors, critic.safetensors, dynamics.safetensors, reward.safetensors
checkpoints/          one per stage, for resuming
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from jacrec.data.transitions import DatasetInfo, Transitions, expect_transitions
from jacrec.envs.actions import ActionBox
from jacrec.models.io import DYNAMICS, REMEDY, load_module_and_notes, save_module
from jacrec.models.networks import Actor, RewardModel, TwinCritic
from jacrec.models.world import World
from jacrec.training.config import TrainConfig
from jacrec.training.determinism import determinism
from jacrec.training.folder import NETWORKS, claimed, expect_own_policy, loadable, read_record, recorded_config, recorded_info
from jacrec.training.loop import Metrics, OnLog, Scores, Stage, run_stage
from jacrec.training.pretrained import unpacked
from jacrec.training.progress import make_progress
from jacrec.training.stages.dynamics import DynamicsStage
from jacrec.training.stages.multistep import MultiStepStage
from jacrec.training.stages.objectives import make_dynamics
from jacrec.training.stages.rebrac import ReBRACStage
from jacrec.training.stages.reward import RewardStage
from jacrec.training.stages.tilt import load_tilt_policy
from jacrec.training.streams import derive_seed
from jacrec.util.errors import expect_one_of
from jacrec.util.files import user_path
from jacrec.util.signals import OrderlyExit
from jacrec.util.tensors import usable_device

STAGES = ("rebrac", "dynamics", "reward")
PARTS = {part: stage for stage, parts in NETWORKS.items() for part in parts}
"""stages by the file stems of their networks"""


CLASSES = {"actor": (Actor,), "critic": (TwinCritic,), "dynamics": DYNAMICS, "reward": (RewardModel,)}
"""classes by the file stems of the networks"""


class Evaluate(Protocol):
    """Plays a policy under training: `jacrec.evaluation.curve.PolicyEvaluation`."""

    @property
    def every(self) -> int:
        """Updates between evaluations."""
        ...

    def check(self, policy: Actor, info: DatasetInfo, folder: Path) -> None:
        """ValueError if the policy cannot be played."""
        ...

    def __call__(self, policy: Actor, info: DatasetInfo, folder: Path) -> dict[str, float]:
        """Entries for a line of metrics."""
        ...


@dataclass(frozen=True)
class Run:
    """A trained run, on the CPU, in evaluation mode."""

    policy: Actor
    """π_ψ"""
    world: World
    """f_θ, r_ξ, Q_φ and γ"""
    info: DatasetInfo
    """metadata of the training data, including the evaluation environment"""
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
    parallel_stages: int = 1,
    policy: nn.Module | None = None,
    extend: bool = False,
    evaluate: Evaluate | None = None,
    quiet: bool = False,
    on_log: OnLog | None = None,
) -> Path:
    """Train the `stages` ("rebrac", "dynamics", "reward") into the folder `out`; return the folder.

    A new folder is created. A folder with a run of the same settings and data is resumed from the last checkpoint,
    bit-identically to an uninterrupted run (on the same machine with the same number of threads). Any other folder is left
    unchanged. A keyboard interrupt finishes the current update and loses nothing; a kill loses the updates since the last
    checkpoint.

    Args:
        stages: the stages to train, in this order; a tilted world model is trained after the policy.
        data: transitions to train on, instead of loading `config.data`.
        parallel_stages: number of stages to train at a time. They share torch's threads unless config.threads sets the number
            of each. Small batches gain more from parallel stages than from more threads.
        policy: the policy for a tilted world model; default: the folder's own, which must be trained first.
        extend: train an existing run for longer: allow more updates than it was started with. It goes on from the last
            checkpoint; with a constant learning rate the result is that of a run of this length from the start. The stage's
            networks are deleted first; interrupted, it is resumed as every run is. A schedule of the learning rate continues
            as that of the longer training, so a cosine starts again from where it would be.
        evaluate: plays the policy while it is trained, e.g. `jacrec.evaluation.curve.PolicyEvaluation`; the results become
            entries of the metrics. It does not change what is trained, and need not be the same when a run is resumed.
        quiet: no progress display.
        on_log: called with every line of metrics as it is written, in the thread of its stage.

    Raises:
        ValueError: `out` contains something else, or the data are unsuitable.
        FileNotFoundError: a tilted world model without a policy.
        FloatingPointError: training diverged.
    """
    out = user_path(out)
    for stage in stages:
        expect_one_of("stages", stage, STAGES)
    if "rebrac" in stages:
        expect_own_policy(out)
    if parallel_stages < 1:
        raise ValueError(f"parallel_stages: expected an integer >= 1, got {parallel_stages}")
    data = load_transitions(config, data)
    check_device(config)
    scores = None if evaluate is None else policy_scores(evaluate, config, data, out, stages)
    metrics, stop, saving = Metrics(out / "metrics.jsonl", on_log, scores), threading.Event(), threading.Lock()
    threads = config.threads or max(1, torch.get_num_threads() // parallel_stages)

    def run(stage: Stage) -> None:
        torch.set_num_threads(threads)
        checkpoint = checkpoint_path(out, stage.name)
        try:
            finished = run_stage(
                stage,
                checkpoint,
                metrics,
                log_every=config.log_every,
                checkpoint_every=config.checkpoint_every,
                progress=progress,
                stop=stop,
            )
        except BaseException:
            stop.set()
            raise
        if finished:
            with saving:
                save_networks(stage, out)

    with OrderlyExit() as stack:
        stack.enter_context(determinism(config))
        first, then = split_stages(stages, config)
        # built before the folder is created, so that invalid settings leave no folder behind
        ready = [make_stage(name, config, data, policy or out) for name in first]
        make_dynamics(data.state_dim, data.action_dim, config.dynamics)
        stack.enter_context(claimed(out, config, data, extend=extend))
        stack.enter_context(torch_threads(threads))
        progress = stack.enter_context(make_progress(quiet))
        # even a single stage runs in a thread: the main thread stays free to handle keyboard interrupts
        pool = stack.enter_context(ThreadPoolExecutor(parallel_stages))
        try:
            for future in as_completed([pool.submit(run, stage) for stage in ready]):
                future.result()
            for name in then:
                if not stop.is_set():
                    pool.submit(lambda name=name: run(make_stage(name, config, data, policy or out))).result()
        finally:
            stop.set()
    return out


def policy_scores(evaluate: Evaluate, config: TrainConfig, data: Transitions, out: Path, stages: Sequence[str]) -> Scores:
    """The entries of `evaluate` for the metrics of ReBRAC.

    Raises:
        ValueError: evaluations that fall between lines of metrics, or a policy that cannot be played.
    """
    if evaluate.every % config.log_every:
        raise ValueError(
            f"eval_every: expected a multiple of log_every = {config.log_every}, whose lines hold the scores, got {evaluate.every}"
        )
    if "rebrac" in stages:
        with torch.random.fork_rng(devices=[]):
            evaluate.check(Actor(data.state_dim, data.action_dim, (1,)), data.info, out)

    def scores(stage: Stage, update: int) -> dict[str, float]:
        if stage.name != "rebrac" or (update % evaluate.every and update < stage.updates):
            return {}
        actor = _detached_copy(stage.modules()["actor"])
        assert isinstance(actor, Actor)
        return evaluate(actor.eval(), data.info, out)

    return scores


def checkpoint_path(out: Path, stage: str) -> Path:
    """A stage's checkpoint in a run's folder."""
    return out / "checkpoints" / f"{stage}.safetensors"


def load_transitions(config: TrainConfig, data: Transitions | None = None) -> Transitions:
    """The configuration's data, or `data` with the configuration's environment.

    Raises:
        ValueError: `data` state other action bounds than the configuration.
    """
    stated, given = ActionBox.stated(config.action_low, config.action_high), data is not None
    if data is None:
        if not config.data:
            raise ValueError(
                "data: expected the name or path of a data set in the settings, or train(..., data=...), got neither"
            )
        from jacrec.data.readers.load import load

        low, high = config.action_low, config.action_high
        data = load(
            config.data, env_id=config.env_id, action_low=low, action_high=high, repair=config.repair, mapping=config.mapping
        )
    expect_transitions(data)
    if given and stated is not None and stated != data.info.action_box:
        raise ValueError(
            f"action_low, action_high: expected none beside data, whose actions are already in [-1, 1] for "
            f"{data.info.action_box or 'unstated bounds'}, got {stated}; state them where the data are read"
        )
    return data if config.env_id is None else replace(data, info=replace(data.info, env_id=config.env_id))


def check_device(config: TrainConfig) -> torch.device:
    """The configuration's device.

    Raises:
        ValueError: torch cannot use it here.
    """
    return usable_device("device", config.device)


def save_networks(stage: Stage, out: Path) -> None:
    """Save a finished stage's networks, the critic with the scale of its values."""
    for part, module in stage.modules().items():
        scale = stage.value_scale() if part == "critic" and isinstance(stage, ReBRACStage) else None
        notes = {"value_scale": scale} if scale else None  # a critic that diverged has none
        save_module(_detached_copy(module), out / f"{part}.safetensors", notes=notes)


def split_stages(stages: Sequence[str], config: TrainConfig) -> tuple[list[str], list[str]]:
    """The stages that can be built at once, and those that depend on the policy trained by another one."""
    waits = config.dynamics.tilt > 0 and "rebrac" in stages
    return [s for s in stages if not (waits and s == "dynamics")], [s for s in stages if waits and s == "dynamics"]


def make_stage(name: str, config: TrainConfig, data: Transitions, policy: nn.Module | Path | None = None) -> Stage:
    """One of the `STAGES`, untrained.

    Args:
        policy: the policy for a tilted world model, or the run's folder that contains it.

    Raises:
        FileNotFoundError: the folder does not contain it.
    """
    if name == "rebrac":
        return ReBRACStage(data, config.rebrac, config.seed, config.device)
    kept, held_out = data.split(config.held_out, derive_seed(config.seed, "held out"))
    if not (len(kept) and len(held_out)):
        raise ValueError(
            f"{data.info.name}: expected rows with a known successor for training and held out, got {len(kept)} and "
            f"{len(held_out)}; provide next_observations, or mark the ends of episodes where they are"
        )
    if name == "dynamics":
        if config.dynamics.kind == "multistep":
            return MultiStepStage(kept, held_out, config.dynamics, config.seed, config.device)
        towards = load_tilt_policy(policy) if isinstance(policy, Path) and config.dynamics.tilt else policy
        return DynamicsStage(
            kept,
            held_out,
            config.dynamics,
            config.seed,
            config.device,
            policy=towards if isinstance(towards, nn.Module) else None,
        )
    return RewardStage(kept, held_out, config.reward, config.seed, config.rebrac.reward_scale, config.device)


def load_run(path: str | Path) -> Run:
    """Load the run in a folder created by `train`; `pretrained/NAME` is one that ships with the package (`jacrec models list`).

    Raises:
        FileNotFoundError: no run there, or one of its networks is not trained yet.
        ValueError: one of its files is damaged, or another network's.
    """
    path = unpacked(user_path(path))
    record = read_record(path)
    config = recorded_config(path, record)
    missing = _missing(path)
    if missing:
        stages, settings = untrained_stages(path), path / "config.yaml"
        if "rebrac" in stages and not config.rebrac.updates:
            raise FileNotFoundError(
                f"{path}: expected a run, got one without {', '.join(missing)}, as `train_world` leaves it for parts that are not "
                "jacrec's own; read its world alone: jacrec.training.load_world(path, critic=critic)"
            )
        remedy = f"`jacrec train {config.data} --settings {settings} --out {path} --stages {' '.join(stages)}`"
        if not loadable(config, recorded_info(record)):
            remedy = f"jacrec.training.train(config, {str(path)!r}, stages={stages}, data=...), config as in {settings}"
        raise FileNotFoundError(
            f"{path}: expected a finished run, got one without {', '.join(missing)}; resume it with {remedy}"
        )
    loaded = {part: load_part(path / f"{part}.safetensors", part) for part in CLASSES}
    parts: dict[str, Any] = {part: module for part, (module, _) in loaded.items()}
    scale = loaded["critic"][1].get("value_scale")  # None for runs of earlier versions
    world = World(parts["dynamics"], parts["reward"], parts["critic"], config.rebrac.discount, scale)
    return Run(parts["actor"], world, recorded_info(record), config, path)


def load_part(path: Path, part: str) -> tuple[nn.Module, dict[str, float]]:
    """The network at `path` and the numbers kept with it; ValueError unless its class is one of `CLASSES[part]`."""
    kinds = CLASSES[part]
    module, notes = load_module_and_notes(path)
    if not isinstance(module, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{path}: expected a network of class {names}, got {type(module).__name__}; {REMEDY}")
    return module, notes


def untrained_stages(path: str | Path) -> list[str]:
    """The stages whose networks are missing in a run's folder."""
    return list(dict.fromkeys(PARTS[part] for part in _missing(user_path(path))))


def _missing(path: Path) -> list[str]:
    return [part for part in PARTS if not (path / f"{part}.safetensors").is_file()]


def _detached_copy(module: nn.Module) -> nn.Module:
    """A copy of the network with its own storage."""
    with torch.random.fork_rng(devices=[]):
        copy = type(module)(**module.config)  # pyright: ignore[reportArgumentType, reportCallIssue]
    copy.load_state_dict(module.state_dict())
    return copy


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
