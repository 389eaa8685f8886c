"""The main job on embedded data, in minutes: make data, train, evaluate, report."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jacrec.data.make import make_dataset
from jacrec.data.minari import local_ids
from jacrec.mpc import MPCConfig
from jacrec.study.config import EvalConfig
from jacrec.study.evaluate import evaluate
from jacrec.study.report import read_metrics, wall_times, write_report
from jacrec.study.results import table
from jacrec.study.video import record_video
from jacrec.training.config import DynamicsConfig, ReBRACConfig, RewardConfig, TrainConfig
from jacrec.training.run import load_run, train


@dataclass(frozen=True)
class DemoConfig:
    """A demo's budget and settings."""

    env: str
    """an environment that `jacrec data make` knows"""
    kind: str
    steps: int
    """environment steps of data"""
    training: TrainConfig
    evaluation: EvalConfig
    video: bool = True

    @property
    def dataset_id(self) -> str:
        """An id that tells the budget, so that another budget makes another data set."""
        return f"jacrec/demo-{self.env}-{self.kind}-{self.steps}-v0"


FULL = DemoConfig(
    env="halfcheetah",
    kind="full-replay",
    steps=100_000,
    training=TrainConfig(
        rebrac=ReBRACConfig(batch_size=256, updates=5_000),
        dynamics=DynamicsConfig(steps=5, updates=6_000, ema=0.995),
        reward=RewardConfig(hidden=(256, 256, 256), batch_size=256, updates=3_000),
        log_every=500,
        checkpoint_every=1_000,
    ),
    evaluation=EvalConfig(episodes=10, mpc=MPCConfig(horizon=1, particles=4, lr=5e-5)),
)

QUICK = DemoConfig(
    env="hopper",
    kind="medium-replay",
    steps=3_000,
    training=TrainConfig(
        rebrac=ReBRACConfig(batch_size=64, updates=60, hidden=(32, 32)),
        dynamics=DynamicsConfig(steps=3, updates=60, batch_size=64, hidden=(32, 32), ema=0.9, eval_transitions=100),
        reward=RewardConfig(hidden=(32, 32), batch_size=64, updates=60, eval_transitions=100),
        log_every=20,
        checkpoint_every=30,
    ),
    evaluation=EvalConfig(episodes=3, mpc=MPCConfig(horizon=1, particles=2), probe_every=5),
)


def demo(config: DemoConfig = FULL, out: str | Path = "runs/demo", *, quiet: bool = False) -> Path:
    """Run the demo into `out`, or go on with one that was interrupted there; the report's path.

    Raises:
        ValueError: `out` holds another run.
    """
    out, console = Path(out), Console(quiet=quiet)
    stages: dict[str, float] = {}

    def timed(name: str, work: Callable[[], None]) -> None:
        began = time.perf_counter()
        work()
        stages[name] = time.perf_counter() - began

    if config.dataset_id not in local_ids():
        console.print(f"[bold]1/4 data[/]   {config.env} {config.kind}, {config.steps} steps of MuJoCo")
        timed("data", lambda: _make(config))
    console.print(f"[bold]2/4 train[/]  policy and critic, world model, reward model on {config.dataset_id}")
    train(replace(config.training, data=config.dataset_id), out, quiet=quiet)
    run = load_run(out)
    console.print(f"[bold]3/4 eval[/]   {config.evaluation.episodes} episodes each: {', '.join(config.evaluation.order)}")
    record = evaluate(run, config.evaluation, quiet=quiet)
    if config.video:

        def film() -> None:
            made = record_video(run, config.evaluation, out)
            console.print(f"video: {made.path}" if made.path else f"no video: {made.reason}")

        timed("video", film)
    console.print("[bold]4/4 report[/]")
    times = wall_times(read_metrics(out), record, stages)
    path = write_report(out, stages=stages)
    console.print(table(record))
    shown = Table("stage", "seconds", title="wall time")
    for name, seconds in times.items():
        shown.add_row(name, f"{seconds:.0f}")
    shown.add_row("together", f"{sum(times.values()):.0f}")
    console.print(shown)
    console.print(f"report: {path}", soft_wrap=True)
    return path


def _make(config: DemoConfig) -> None:
    make_dataset(config.env, config.kind, steps=config.steps, dataset_id=config.dataset_id)
