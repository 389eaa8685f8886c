"""Training steps per second: ReBRAC by hand against plain torch with autograd; the world model and the reward model beside it.

First 20 updates of both in float64 from the same start, on the same batches: nothing is timed unless the weights agree.
Then milliseconds per update, updates per second, and the share of the time that the hidden layers' matrix products alone
would take at the rate measured here. Writes benchmarks/results/training_speed.json.

    python benchmarks/training_speed.py                 # hopper sizes, batches 256 and 1024, one thread, two minutes
    python benchmarks/training_speed.py --threads 2
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from harness import environment, timed, write

from jacrec.data.transitions import DatasetInfo, Transitions
from jacrec.training.config import DynamicsConfig, ReBRACConfig, RewardConfig
from jacrec.training.dynamics import DynamicsStage
from jacrec.training.rebrac import ReBRACStage
from jacrec.training.reward import RewardStage
from tests.plain_rebrac import PlainReBRAC, largest_difference

SIZES = {"hopper": (11, 3), "halfcheetah": (17, 6), "antmaze": (29, 8)}
HIDDEN_PRODUCTS = 24
"""products of (B, w) with (w, w) per update, an actor update in every second: 2 target actor, 4 target critics, 4 + 8 critics
and their cotangents; halves of 2 + 4 actor, 4 critics, 2 their input's cotangent on the rows where each is the smaller"""


def noise_data(d: int, m: int, rows: int = 20_000) -> Transitions:
    """Transitions without meaning: speed does not depend on it."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    last = np.arange(rows) % 100 == 99
    return Transitions(
        normal(rows, d), np.tanh(normal(rows, m)), normal(rows), normal(rows, d), np.tanh(normal(rows, m)),
        np.zeros(rows, dtype=bool), ~last, np.arange(rows) // 100, DatasetInfo("noise"),
    )  # fmt: skip


def stepper(step: Callable[[int], object]) -> Callable[[], None]:
    """Two updates a call, the first of which moves the actor."""
    update = 0

    def call() -> None:
        nonlocal update
        step(update)
        step(update + 1)
        update += 2

    return call


def plain_stepper(stage: ReBRACStage, plain: PlainReBRAC) -> Callable[[int], None]:
    """The same batches through the plain transcription."""
    d, m = stage.learner.d, stage.learner.m

    def step(update: int) -> None:
        index, noise = stage.stream.at(update)
        s, a, s2, a2, r, alive = stage.rows.index_select(0, index).split([d, m, d, m, 1, 1], -1)
        plain.update(s, a, r[:, 0], s2, a2, 1 - alive[:, 0], noise, update % stage.config.policy_freq == 0)

    return step


def disagreement(data: Transitions, width: int) -> float:
    """The largest difference of any actor or critic weight after 20 updates in float64."""
    config = ReBRACConfig(batch_size=32, hidden=(width,) * 3)
    stage = ReBRACStage(data, config, seed=0, dtype=torch.float64)
    plain = PlainReBRAC(stage.learner)
    step = plain_stepper(stage, plain)
    for update in range(20):
        step(update)
        stage.step(update)
    critics = [largest_difference(stage.learner.critic.mlp, critic, head) for head, critic in enumerate(plain.critics)]
    return max(largest_difference(stage.learner.actor.mlp, plain.actor), *critics)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=SIZES, default="hopper")
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    d, m = SIZES[options.task]
    data = noise_data(d, m)
    difference = disagreement(data, options.width)
    print(f"largest difference of any weight after 20 updates in float64: {difference:.1e}")
    if difference > 1e-10:
        raise SystemExit("the two do not agree: no times")
    result: dict = {"environment": environment(), "task": options.task, "float64_difference": difference, "rows": []}
    hidden = (options.width,) * 3
    for batch in options.batches:
        stage = ReBRACStage(data, ReBRACConfig(batch_size=batch, hidden=hidden), seed=0)
        plain = PlainReBRAC(ReBRACStage(data, stage.config, seed=0).learner, fused=True)
        x, w, out = (
            torch.randn(batch, options.width),
            torch.randn(options.width, options.width),
            torch.empty(batch, options.width),
        )

        def products(x=x, w=w, out=out) -> None:
            for _ in range(2 * HIDDEN_PRODUCTS):
                torch.mm(x, w, out=out)

        calls = {
            "autograd, fused Adam": stepper(plain_stepper(stage, plain)),
            "by hand": stepper(stage.step),
            "matrix products alone": products,
            "diffusion model": stepper(DynamicsStage(data, data, DynamicsConfig(batch_size=batch, hidden=hidden), 0).step),
            "reward model": stepper(RewardStage(data, data, RewardConfig(batch_size=batch, hidden=hidden), 0).step),
        }
        times = timed(calls, options.repetitions)
        floor = times["matrix products alone"]["median"]
        for name, t in times.items():
            row = {"batch": batch, "name": name, "updates_per_second": round(2000 / t["median"], 1),
                   "ms": {k: round(v / 2, 3) for k, v in t.items()}}  # fmt: skip
            if name in ("autograd, fused Adam", "by hand"):
                row["share_of_floor"] = round(floor / t["median"], 2)
                row["ratio_to_autograd"] = round(times["autograd, fused Adam"]["median"] / t["median"], 2)
            result["rows"].append(row)
            print(f"batch {batch:5}  {name:22} {row['updates_per_second']:8.1f} updates/s  {row['ms']}"
                  f"  floor share {row.get('share_of_floor', '')}  speed-up {row.get('ratio_to_autograd', '')}")  # fmt: skip
    print(write("training_speed" if options.threads == 1 else f"training_speed_{options.threads}_threads", result))


if __name__ == "__main__":
    main()
