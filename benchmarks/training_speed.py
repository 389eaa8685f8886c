"""Training steps per second: fused and hand-written ReBRAC compared with autograd in torch and a jitted scan in JAX.

First, 20 updates of each contestant in float64 from the same start and on the same batches; nothing is timed unless the
weights agree; so for world and reward model. Then milliseconds per update, updates per second, and the fraction of the time that the hidden layers' matrix
products alone would take at the measured rate. World model and reward model are
compared with plain torch, at the same sizes and as `jacrec train` trains them by default. JAX runs in separate
processes with as many processors as the others have threads (`jax_rebrac.py`); its rows are omitted without JAX and on a GPU.
On a GPU, jacrec's steps are CUDA graphs, and "by hand" is the same without graphs.
Writes benchmarks/results/training_speed_MACHINE.json if no option is given.

    python benchmarks/training_speed.py                 # hopper sizes, batches 256 and 1024, 1 and 2 threads, two minutes
    python benchmarks/training_speed.py --task antmaze --threads 2 --batches 256
    python benchmarks/training_speed.py --device cuda
"""

import argparse
import contextlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from harness import as_usual, environment, slug, timed, usable_cores, write
from torch import nn

from jacrec.data.transitions import DatasetInfo, Transitions
from jacrec.models.dynamics import DiffusionDynamics
from jacrec.training.config import DynamicsConfig, ReBRACConfig, RewardConfig
from jacrec.training.passes import fused_unsupported_reason
from jacrec.training.stages.dynamics import DynamicsStage, make_dynamics
from jacrec.training.stages.rebrac import ReBRACStage
from jacrec.training.stages.reward import RewardStage
from tests.plain_rebrac import PlainReBRAC, largest_difference

SIZES = {"hopper": (11, 3), "halfcheetah": (17, 6), "antmaze": (29, 8)}
HIDDEN_PRODUCTS = 24
"""products of (B, w) with (w, w) per update, with an actor update in every second: 2 target actor, 4 target critics, 4 + 8
critics and their cotangents; half of 2 + 4 actor, 4 critics, 2 input cotangent of the smaller critic in each row"""
GOAL = 1.2
"""required speed-up over a jitted JAX scan, on a CPU"""
PLAIN, HAND, FUSED, GRAPHS, JAX = "autograd, fused Adam", "by hand", "fused", "CUDA graphs", "jax, jitted scan"


def noise_data(d: int, m: int, rows: int = 20_000) -> Transitions:
    """Random transitions; speed does not depend on the data."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    last = np.arange(rows) % 100 == 99
    return Transitions(
        normal(rows, d),
        np.tanh(normal(rows, m)),
        normal(rows),
        normal(rows, d),
        np.tanh(normal(rows, m)),
        np.zeros(rows, dtype=bool),
        ~last,
        np.arange(rows) // 100,
        DatasetInfo("noise"),
    )


def stepper(step: Callable[[int], object], updates: int) -> Callable[[], None]:
    """A function that makes an even number of updates per call; every other one updates the actor."""
    update = 0

    def call() -> None:
        nonlocal update
        for _ in range(updates):
            step(update)
            update += 1

    return call


def plain_stepper(stage: ReBRACStage, plain: PlainReBRAC) -> Callable[[int], None]:
    """The same for the plain transcription, on the same batches."""
    d, m = stage.learner.d, stage.learner.m

    def step(update: int) -> None:
        index, noise = stage.stream.at(update)
        s, a, s2, a2, r, alive = stage.rows.index_select(0, index).split([d, m, d, m, 1, 1], -1)
        plain.update(s, a, r[:, 0], s2, a2, 1 - alive[:, 0], noise, update % stage.config.policy_freq == 0)

    return step


def plain_regression(module: nn.Module, averaged: nn.Module, config: DynamicsConfig | RewardConfig, loss: Callable):
    """One least-squares step in plain torch: autograd, fused Adam, clipping, averaged weights."""
    parameters: list[torch.Tensor] = list(module.parameters())
    averages: list[torch.Tensor] = list(averaged.parameters())
    optimiser = torch.optim.Adam(parameters, lr=config.lr, fused=True)

    def step(update: int) -> None:
        optimiser.zero_grad()
        loss(update).backward()
        if config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimiser.step()
        with torch.no_grad():
            for average, parameter in zip(averages, parameters, strict=True):
                average.lerp_(parameter, 1 - config.ema)

    return step


Pairs = list[tuple[nn.Module, nn.Module]]
"""jacrec's network and plain torch's, trained on the same batches"""


def regressions(
    data: Transitions,
    world: DynamicsConfig,
    reward: RewardConfig,
    updates: int,
    device: str,
    dtype: torch.dtype = torch.float32,
) -> tuple[dict[str, Callable[[], None]], Pairs]:
    """World model and reward model: jacrec's, on a CPU also without compiled code, and plain torch's, on the same batches."""
    d, m = data.state_dim, data.action_dim
    worlds = [DynamicsStage(data, data, world, 0, device, dtype, fused=fused) for fused in (None, False)]
    rewards = [RewardStage(data, data, reward, 0, 1.0, device, dtype, fused=fused) for fused in (None, False)]
    model, model_averaged = (make_dynamics(d, m, world).to(device, dtype) for _ in range(2))
    assert isinstance(model, DiffusionDynamics)
    s, a, s2 = (torch.from_numpy(x).to(device, dtype) for x in (data.state, data.action, data.next_state))
    net, net_averaged = (RewardStage(data, data, reward, 0, 1.0, device, dtype).model for _ in range(2))
    model.load_state_dict(worlds[0].model.state_dict())
    for parameter in net.parameters():
        parameter.requires_grad_(True)

    def world_loss(update: int) -> torch.Tensor:
        index, k, noise = worlds[0].stream.at(update)
        return model.loss(s[index], a[index], s2[index], k + 1, noise).mean()

    def reward_loss(update: int) -> torch.Tensor:
        rows = rewards[0].examples.rows.index_select(0, rewards[0].stream.at(update)[0])
        return nn.functional.mse_loss(net.mlp(rows[:, :-1]), rows[:, -1:])

    steps = {
        "diffusion model": worlds[0].step,
        "diffusion model, by hand": worlds[1].step,
        "diffusion model, autograd": plain_regression(model, model_averaged, world, world_loss),
        "reward model": rewards[0].step,
        "reward model, by hand": rewards[1].step,
        "reward model, autograd": plain_regression(net, net_averaged, reward, reward_loss),
    }
    pairs = [(worlds[0].model, model), (rewards[0].model, net)]
    return {name: stepper(step, updates) for name, step in steps.items() if device == "cpu" or "hand" not in name}, pairs


def regression_disagreement(data: Transitions, device: str) -> float:
    """The largest difference of any weight of the world and reward models to plain torch's after 20 updates in float64."""
    sizes = {"batch_size": 70, "hidden": (48, 48), "lr_schedule": "constant"}  # as plain torch's here
    calls, pairs = regressions(data, DynamicsConfig(**sizes), RewardConfig(**sizes), 20, device, torch.float64)
    for call in calls.values():
        call()
    return max(
        (actual.detach() - plain.detach()).abs().max().item()
        for pair in pairs
        for actual, plain in zip(*(module.parameters() for module in pair), strict=True)
    )


def measure_recipe(data: Transitions, options: argparse.Namespace, threads: int) -> list[dict]:
    """World model and reward model as `jacrec train` trains them by default."""
    torch.set_num_threads(threads)
    rows = []
    for kept, updates in (("diffusion", 8), ("reward", 1)):
        calls, _ = regressions(data, DynamicsConfig(), RewardConfig(), updates, options.device)
        calls = {f"{name}, default recipe": call for name, call in calls.items() if name.startswith(kept)}
        times = timed(calls, options.repetitions, options.device, turns=options.turns, settle=1)
        baseline = next(t["median"] for name, t in times.items() if "autograd" in name)
        for name, t in times.items():
            ms, ratio = {k: round(v / updates, 3) for k, v in t.items()}, round(baseline / t["median"], 2)
            rows.append({"threads": threads, "name": name, "ms": ms, "ratio_to_autograd": ratio})
            print(f"{threads} threads  {name:42} {ms}  ratio to autograd {ratio}")
    return rows


def _jax_command(task: str, width: int) -> list[str]:
    script = Path(__file__).with_name("jax_rebrac.py")
    return [sys.executable, str(script), "--dims", *map(str, SIZES[task]), "--width", str(width)]


@contextlib.contextmanager
def jax_process(task: str, width: int, batch: int, threads: int, updates: int) -> Iterator[Callable[[], None]]:
    """Start a JAX process with this many processors; each call runs `updates` updates in it."""
    command = [
        *_jax_command(task, width),
        "--batch",
        str(batch),
        "--threads",
        str(threads),
        "--updates",
        str(updates),
    ]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    given, answers = process.stdin, process.stdout

    def answer() -> None:
        line = answers.readline()
        if not line:
            raise RuntimeError(f"jax_rebrac.py: expected a line of JSON, but the process ended ({process.wait()})")
        json.loads(line)

    def call() -> None:
        given.write("\n")
        given.flush()
        answer()

    try:
        answer()  # compiled
        yield call
    finally:
        given.close()
        process.wait()


def disagreement(data: Transitions, width: int, device: str) -> float:
    """The largest difference of any actor or critic weight to the plain transcription after 20 updates in float64."""
    config, worst = ReBRACConfig(batch_size=32, hidden=(width,) * 3), 0.0
    kinds: list[dict] = [{"fused": False, "capturable": False}, {}]
    for kind in kinds:
        stage = ReBRACStage(data, config, 0, device, torch.float64, **kind)
        plain = PlainReBRAC(stage.learner)
        step = plain_stepper(stage, plain)
        for update in range(20):
            step(update)
            stage.step(update)
        critics = [largest_difference(stage.learner.critic.mlp, critic, head) for head, critic in enumerate(plain.critics)]
        worst = max(worst, largest_difference(stage.learner.actor.mlp, plain.actor), *critics)
    return worst


def jax_disagreement(task: str, width: int) -> float | None:
    """The same between JAX and jacrec; None without JAX."""
    if importlib.util.find_spec("jax") is None:
        return None
    command = [*_jax_command(task, width), "--check"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["difference"]


def measure(data: Transitions, options: argparse.Namespace, batch: int, threads: int, with_jax: bool) -> list[dict]:
    """One row per contestant."""
    torch.set_num_threads(threads)
    hidden, updates = (options.width,) * 3, max(4, 2048 // batch)
    config = ReBRACConfig(batch_size=batch, hidden=hidden)
    device = options.device
    stage = ReBRACStage(data, config, 0, device, fused=False, capturable=False)
    plain = PlainReBRAC(ReBRACStage(data, config, 0, device, fused=False).learner, fused=True)
    x, out = (torch.randn(batch, options.width, device=device) for _ in range(2))
    w = torch.randn(options.width, options.width, device=device)

    def products() -> None:
        for _ in range(updates * HIDDEN_PRODUCTS):
            torch.mm(x, w, out=out)

    calls = {PLAIN: stepper(plain_stepper(stage, plain), updates), HAND: stepper(stage.step, updates)}
    obstacle = fused_unsupported_reason(x)
    if obstacle is None:
        calls[FUSED] = stepper(ReBRACStage(data, config, 0, fused=True).step, updates)
    elif device == "cuda":
        calls[GRAPHS] = stepper(ReBRACStage(data, config, 0, device).step, updates)
    else:
        print(f"fused: skipped, {obstacle}")
    with contextlib.ExitStack() as stack:
        if with_jax:
            calls[JAX] = stack.enter_context(jax_process(options.task, options.width, batch, threads, updates))
        calls["matrix products alone"] = products
        sizes = {"batch_size": batch, "hidden": hidden}
        calls |= regressions(data, DynamicsConfig(**sizes), RewardConfig(**sizes), updates, device)[0]
        times = timed(calls, options.repetitions, device, turns=options.turns, settle=1)
    rows = []
    for name, t in times.items():
        median = t["median"]
        row = {
            "threads": threads,
            "batch": batch,
            "name": name,
            "updates_per_second": round(1000 * updates / median, 1),
            "ms": {k: round(v / updates, 3) for k, v in t.items()},
        }
        if name in (PLAIN, HAND, FUSED, GRAPHS, JAX):
            row["share_of_floor"] = round(times["matrix products alone"]["median"] / median, 2)
            row["ratio_to_autograd"] = round(times[PLAIN]["median"] / median, 2)
            if with_jax:
                row["ratio_to_jax"] = round(times[JAX]["median"] / median, 2)
        elif (autograd := f"{name.removesuffix(', by hand')}, autograd") in times:
            row["ratio_to_autograd"] = round(times[autograd]["median"] / median, 2)
        rows.append(row)
        ratios = "  ".join(f"{k.replace('_', ' ')} {v}" for k, v in row.items() if k.startswith(("share", "ratio")))
        print(f"{threads} threads  batch {batch:5}  {name:26} {row['updates_per_second']:8.1f} /s  {row['ms']}  {ratios}")
    return rows


def main() -> None:
    """Compare, time, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--task", choices=SIZES, default="hopper")
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repetitions", type=int, default=9, help="timed calls per contestant")
    parser.add_argument("--turns", type=int, default=3, help="number of turns over which the calls are spread")
    parser.add_argument("--json", type=Path, help="output path")
    options = parser.parse_args()
    data = noise_data(*SIZES[options.task])
    gpu = options.device == "cuda"
    differences = {
        "autograd": disagreement(data, options.width, options.device),
        "autograd, regressions": regression_disagreement(data, options.device),
        "jax": None if gpu else jax_disagreement(options.task, options.width),
    }
    for name, difference in differences.items():
        if difference is None:
            print(f"{name}: skipped, " + ("CPU only" if gpu else "not installed (pip install 'jacrec[bench]')"))
            continue
        print(f"largest difference of any weight from {name}'s after 20 updates in float64: {difference:.1e}")
        if difference > 1e-10:
            raise SystemExit("the weights do not agree; nothing was timed")
    here = environment(options.device)
    del here["threads"]  # the groups have different rows
    result: dict = {"environment": here, "task": options.task, "float64_difference": differences, "rows": []}
    for threads in options.threads[:1] if gpu else options.threads:
        if threads > usable_cores():
            print(f"{threads} threads: skipped, only {usable_cores()} processors")
            continue
        for batch in options.batches:
            result["rows"] += measure(data, options, batch, threads, differences["jax"] is not None)
        if not gpu:
            result["rows"] += measure_recipe(data, options, threads)
    for row in result["rows"]:
        if row["name"] == FUSED and "ratio_to_jax" in row:
            reached = "reached" if row["ratio_to_jax"] >= GOAL else "not reached"
            print(f"goal {GOAL} x JAX, {row['threads']} threads, batch {row['batch']}: {row['ratio_to_jax']} ({reached})")
    if options.json is not None:
        print(write("", result, options.json))
    elif as_usual(parser, options, "device"):
        print(write(f"training_speed_{slug(options.device)}", result))


if __name__ == "__main__":
    main()
