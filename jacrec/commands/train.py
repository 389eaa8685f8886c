"""`jacrec train DATA`: policy, critic, world model and reward model."""

import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from tyro.conf import Positional

from jacrec.adapters import from_file
from jacrec.commands.options import refuse_unused
from jacrec.commands.tracking import Kinds, TrainingTracking
from jacrec.data.yaml_file import read_yaml
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.curve import CURVE_SEED, PolicyEvaluation
from jacrec.models.networks import Actor, TwinCritic
from jacrec.training.config import ReBRACConfig, TrainConfig, from_dict, published_name, to_dict
from jacrec.training.run import STAGES, load_transitions, train, untrained_stages
from jacrec.training.seeds import seed_folder, train_seeds
from jacrec.training.world import train_world
from jacrec.util.content import expect_content

Stage = Literal["rebrac", "dynamics", "reward"]


@dataclass(frozen=True)
class Settings(TrainConfig):
    """TrainConfig without the data set, which is the positional argument."""

    data: tyro.conf.Suppress[str] = ""


@dataclass(frozen=True)
class Train:
    """Train policy, critic, world model and reward model into a run folder. An interrupted run is resumed.

    For D4RL's 24 data sets ReBRAC's published settings are the defaults. With --policy only the two models are trained, for a policy
    and a critic of another library.
    """

    source: Annotated[Positional[str], tyro.conf.arg(metavar="DATA")]
    """name of a D4RL data set (see `jacrec data get`) or of a single task of OGBench, Minari id, or path of an HDF5 file in D4RL's
    layout, or of another file with --mapping"""
    out: Path | None = None
    """the run's folder; None: runs/DATA-sSEED"""
    settings: Path | None = None
    """YAML file of settings; the options below override it"""
    policy: Path | None = None
    """file of a policy and a critic that were trained elsewhere: Stable-Baselines3's model.zip, d3rlpy's model.d3, CORL's
    checkpoint_*.pt, a .cleanrl_model, or what jacrec.save wrote. Stable-Baselines3 and d3rlpy execute what is pickled in theirs"""
    policy_statistics: str | None = None
    """by what its observations were normalised: file of Stable-Baselines3's VecNormalize; or, for CORL's TD3+BC, data (mean and
    std + 1e-3 of DATA) or none (normalize=False); None: what the file itself says"""
    policy_discount: float | None = None
    """γ of a file that does not record it, CORL's and CleanRL's; None: 0.99"""
    stages: tuple[Stage, ...] = STAGES
    """stages to train now"""
    parallel_stages: int = 1
    """stages trained at the same time; small batches gain more from this than from more threads"""
    seeds: tuple[int, ...] = ()
    """several seeds instead of --seed, one folder each: OUT/seed-SEED, or OUT with {seed} replaced. On a GPU they are trained
    together as one batched model; on a CPU, where that is slower, in parallel processes of --threads threads each (one
    without it), as many as there are processors"""
    eval_every: int = 0
    """play the policy in its environment every so many updates of its training and record return and score in metrics.jsonl, a
    curve of the report; a multiple of --log-every; 0: never"""
    eval_episodes: int = 10
    """episodes of each of these evaluations, from environment seed 9000 on"""
    max_episode_steps: int | None = None
    """of these evaluations: time limit, required if the environment has none; None: the environment's own"""
    action_bounds: Literal["env", "data"] | None = None
    """of these evaluations: what the policy's [-1, 1] stands for; None: the environment's, and an error if the data state others"""
    log: Kinds = ()
    extend: bool = False
    """train an existing run for longer: more --rebrac.updates, --dynamics.updates or --reward.updates than it was started with.
    It goes on from the last checkpoint"""
    config: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)


COMMAND = Train


def run(args: list[str]) -> int:
    """Run the verb."""
    # data set and settings file determine the other defaults, so they are parsed first, whatever their position
    first = tyro.cli(COMMAND, args=args, prog="jacrec train")
    default = TrainConfig.for_dataset(first.source)
    if first.policy is not None:  # its critic's rewards are the data's own unless --rebrac.reward-scale says otherwise
        default = replace(default, rebrac=ReBRACConfig())
    if first.settings is not None:
        default = _from_file(first.settings, default)
    start = {f.name: getattr(default, f.name) for f in fields(TrainConfig)}
    chosen = tyro.cli(COMMAND, args=args, prog="jacrec train", default=Train(first.source, config=Settings(**start)))
    refuse_unused(args, "dynamics", chosen.config.dynamics.used, f"kind {chosen.config.dynamics.kind!r}")
    published = None if chosen.policy else published_name(first.source)
    if published is not None:
        print(f"defaults: ReBRAC's published settings for {published}")
    config = from_dict(to_dict(chosen.config) | {"data": chosen.source})
    if chosen.policy is not None:
        refuse_unused(args, "rebrac", ("reward_scale",), "a training for a policy from elsewhere (--policy)")
    _refuse_without_policy(chosen)
    if chosen.seeds:
        return _run_seeds(chosen, config)
    out = chosen.out or Path("runs") / f"{slug(chosen.source)}-s{config.seed}"
    stages, curve = chosen.stages, _curve(chosen)
    with TrainingTracking(chosen.log, {None: out}) as tracking:
        told = {"parallel_stages": chosen.parallel_stages, "on_log": tracking.on_log}
        if chosen.policy is not None:
            _train_world(chosen, chosen.policy, config, out, **told)
        else:
            train(config, out, stages=stages, extend=chosen.extend, evaluate=curve, **told)
        tracking.finish()
    print(f"trained: {out}\n{_next(out)}")
    return 0


def _refuse_without_policy(chosen: Train) -> None:
    """ValueError for options that have no effect with --policy, or without it."""
    given = {"--policy-statistics": chosen.policy_statistics, "--policy-discount": chosen.policy_discount}
    if chosen.policy is None:
        unused, remedy = [name for name, value in given.items() if value is not None], "name the policy's file with --policy"
    else:
        others = {
            "--seeds": chosen.seeds,
            "--extend": chosen.extend,
            "--eval-every": chosen.eval_every,
            "--stages": chosen.stages != STAGES,
        }
        unused = [name for name, value in others.items() if value]
        remedy = "leave it out: with --policy both models are trained, for one seed (--seed), and the policy stays as it is"
    if unused:
        raise ValueError(
            f"{unused[0]}: expected the default {'without' if chosen.policy is None else 'with'} --policy, got another; {remedy}"
        )


def _train_world(chosen: Train, path: Path, config: TrainConfig, out: Path, **told: Any) -> None:
    """Train the two models alone, for the policy and critic in a file."""
    data = load_transitions(config)
    statistics: dict[str, Any] = {}
    if chosen.policy_statistics == "data":
        state = data.for_td().state.astype(np.float64)  # the rows that CORL takes
        statistics = {"state_mean": state.mean(0), "state_std": state.std(0) + 1e-3}
    elif chosen.policy_statistics == "none":
        statistics = {"state_mean": 0.0, "state_std": 1.0}
    elif chosen.policy_statistics is not None:
        statistics = {"vec_normalize": chosen.policy_statistics}
    parts = from_file(path, discount=chosen.policy_discount, action_box=data.info.action_box, **statistics)
    for part, kind in ((parts.policy, Actor), (parts.critic, TwinCritic)):
        if type(part) is not kind:
            raise ValueError(
                f"{path}: expected networks that {kind.__name__} can express (docs/how-to/policies.md), which a run's folder keeps, "
                "got others; train the models in Python with jacrec.training.train_world, which takes any module"
            )
    print(f"{path}: d = {parts.state_dim}, m = {parts.action_dim}, γ = {parts.discount:g}, actions {parts.action_box}")
    if path.suffix == ".zip" and not statistics:  # the file does not tell
        print("observations as they are; if it was trained behind a VecNormalize, give that: --policy-statistics FILE")
    train_world(data, out, policy=parts.policy, critic=parts.critic, discount=parts.discount, config=config, **told)


def _curve(chosen: Train) -> PolicyEvaluation | None:
    """The evaluations while training, if any."""
    if chosen.eval_every == 0:
        return None
    play = PlayConfig(
        episodes=chosen.eval_episodes,
        seed=CURVE_SEED,
        max_episode_steps=chosen.max_episode_steps,
        action_bounds=chosen.action_bounds,
    )
    return PolicyEvaluation(chosen.eval_every, play)


def _next(run: Path) -> str:
    """What to do next with a run."""
    missing = untrained_stages(run)
    return f"next: the same with --stages {' '.join(missing)}" if missing else f"next: jacrec eval {run}"


def _run_seeds(chosen: Train, config: TrainConfig) -> int:
    if chosen.parallel_stages > 1:
        raise ValueError("--parallel_stages: expected 1 with --seeds, which uses all processors itself; leave it out")
    out = chosen.out or f"runs/{slug(chosen.source)}-s{{seed}}"
    stages, curve = chosen.stages, _curve(chosen)
    with TrainingTracking(chosen.log, {seed: seed_folder(out, seed) for seed in chosen.seeds}) as tracking:
        folders = train_seeds(
            config, chosen.seeds, out, stages=stages, extend=chosen.extend, evaluate=curve, on_log=tracking.on_log
        )
        tracking.finish()
    print("\n".join(f"trained: {out}" for out in folders) + f"\n{_next(Path(folders[0]))}")
    return 0


def slug(source: str) -> str:
    """A data set's name as the name of a folder."""
    name = PurePath(source).name if source.endswith((".hdf5", ".h5", ".npz", ".parquet")) else source
    return re.sub(r"[^A-Za-z0-9]+", "-", name.rsplit(".hdf5")[0].removeprefix("jacrec/")).strip("-")


def _from_file(path: Path, default: TrainConfig) -> TrainConfig:
    if not path.is_file():
        raise FileNotFoundError(f"--settings: no file at {path}")
    remedy = "correct it (YAML reads 5e-5 as text: write 5.0e-5)"
    content = read_yaml(path, remedy)
    if isinstance(content, dict):
        content = content.get("settings", content)  # a run's config.yaml is accepted as well
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping of settings, got {type(content).__name__}")
    expect_content(content, TrainConfig, path, remedy)
    merged = to_dict(default)
    for key, value in content.items():
        merged[key] = {**merged[key], **value} if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
    return from_dict(merged)
