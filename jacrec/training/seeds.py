"""One configuration with several seeds: a folder each, as `jacrec.training.run.train` fills it.

On a GPU all seeds are one batched model (`jacrec.training.batched`). On a CPU they are processes of their own, as many at a
time as there are processors: one seed's compiled update keeps a processor busy with little but matrix products, and a batched
model has nothing to add to that.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from jacrec.data.transitions import Transitions
from jacrec.training.batched import BatchableStage, run_batched
from jacrec.training.config import TrainConfig
from jacrec.training.determinism import determinism
from jacrec.training.folder import claim, locked
from jacrec.training.loop import Metrics, OnLog, make_progress
from jacrec.training.run import (
    STAGES,
    check_device,
    checkpoint_path,
    load_transitions,
    make_stage,
    save_networks,
    split_stages,
    torch_threads,
    train,
)
from jacrec.training.stages.rebrac import ReBRACStage
from jacrec.util.errors import expect_count, expect_one_of
from jacrec.util.processors import processors

SPAWN = multiprocessing.get_context("spawn")  # a fork would take over torch's threads in whatever state they are


def seed_folder(out: str | Path, seed: int) -> Path:
    """A seed's folder: `out` with {seed} filled in, or the folder seed-SEED in it."""
    return Path(str(out).replace("{seed}", str(seed))) if "{seed}" in str(out) else Path(out) / f"seed-{seed}"


def train_seeds(
    config: TrainConfig,
    seeds: Sequence[int],
    out: str | Path,
    *,
    stages: Sequence[str] = STAGES,
    data: Transitions | None = None,
    batched: bool | None = None,
    at_once: int | None = None,
    quiet: bool = False,
    on_log: OnLog | None = None,
) -> list[Path]:
    """`train` for every seed; the folders. Each is an ordinary run, gone on with, evaluated and read like one trained alone.

    A seed has the initial weights, batches and noise that it has alone. In processes it comes to the same bits as alone with
    that number of threads; as part of a batched model it differs by rounding, and may change over to being trained alone, and
    back, at any checkpoint. Interrupted as `train` is.

    Args:
        config: its seed is not used.
        out: where the folders are, see `seed_folder`.
        batched: one batched model instead of processes; None: on a GPU.
        at_once: how many processes run at a time; None: as many as there are processors for config.threads each (one, if
            that is None).
        on_log: called with every line of metrics and its "seed"; by threads of several seeds where they are processes.

    Raises:
        ValueError: a folder holds something else, the seeds are not distinct, or the data cannot be learned from.
        FloatingPointError: training diverged. In processes the other seeds are finished before that is said.
        ChildProcessError: a process died, likewise. Notes of all these errors name the folders concerned.
    """
    seeds = list(seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: expected one or more distinct numbers, got {seeds}")
    for stage in stages:
        expect_one_of("stages", stage, STAGES)
    configs = [replace(config, seed=seed) for seed in seeds]
    folders = [seed_folder(out, seed) for seed in seeds]
    device = check_device(config)
    if batched is None:
        batched = device.type == "cuda"
    if batched:
        _train_batched(configs, folders, stages, load_transitions(config, data), quiet, on_log)
        return folders
    threads = config.threads or 1
    if at_once is None:
        at_once = max(1, processors() // threads)
    expect_count("at_once", at_once, 1)
    _train_in_processes(configs, folders, stages, data, threads, min(at_once, len(seeds)), quiet, on_log)
    return folders


def _with_seed(on_log: OnLog | None, seed: int) -> OnLog | None:
    return None if on_log is None else lambda line: on_log({"seed": seed, **line})


def _train_batched(
    configs: list[TrainConfig], folders: list[Path], stages: Sequence[str], data: Transitions, quiet: bool, on_log: OnLog | None
) -> None:
    first, stop = configs[0], threading.Event()
    metrics = [Metrics(out / "metrics.jsonl", _with_seed(on_log, c.seed)) for c, out in zip(configs, folders, strict=True)]

    def run(name: str) -> None:
        torch.set_num_threads(threads)
        members = make_batchable_stages(name, configs, data, folders)
        checkpoints = [checkpoint_path(out, name) for out in folders]
        if run_batched(
            members,
            checkpoints,
            metrics,
            log_every=first.log_every,
            checkpoint_every=first.checkpoint_every,
            progress=progress,
            stop=stop,
        ):
            for member, out in zip(members, folders, strict=True):
                save_networks(member, out)

    with contextlib.ExitStack() as stack:
        stack.enter_context(determinism(first))
        for config, out in zip(configs, folders, strict=True):
            claim(out, config, data)
            stack.enter_context(locked(out))
        threads = first.threads or torch.get_num_threads()
        stack.enter_context(torch_threads(threads))
        progress = stack.enter_context(make_progress(quiet))
        pool = stack.enter_context(ThreadPoolExecutor(1))  # the main thread stays free to take an interruption
        try:
            first_stages, then = split_stages(stages, first)
            for name in (*first_stages, *then):
                pool.submit(run, name).result()
        finally:
            stop.set()


def make_batchable_stages(
    name: str, configs: Sequence[TrainConfig], data: Transitions, folders: Sequence[Path | None] | None = None
) -> Sequence[BatchableStage]:
    """A stage for each configuration, untrained, fit to be put side by side; ReBRAC's share their rows on the device.

    `folders` hold the policies that tilted world models are clipped_weights towards.
    """
    if name != "rebrac":
        where = [None] * len(configs) if folders is None else folders
        return [make_stage(name, *each) for each in zip(configs, [data] * len(configs), where, strict=True)]  # pyright: ignore
    members: list[ReBRACStage] = []
    for c in configs:
        rows = members[0].rows if members else None
        members.append(ReBRACStage(data, c.rebrac, c.seed, c.device, fused=False, capturable=False, rows=rows))
    return members


def _train_in_processes(
    configs: list[TrainConfig],
    folders: list[Path],
    stages: Sequence[str],
    data: Transitions | None,
    threads: int,
    at_once: int,
    quiet: bool,
    on_log: OnLog | None,
) -> None:
    stop, failures = threading.Event(), {}
    with make_progress(quiet) as progress, ThreadPoolExecutor(at_once) as pool:

        def run(config: TrainConfig, out: Path) -> None:
            if stop.is_set():
                return
            log, done = _with_seed(on_log, config.seed), dict.fromkeys(stages, 0)
            total = sum(getattr(config, name).updates for name in stages)
            task = progress.add_task(f"seed {config.seed}", total=total, note="")

            def heard(line: dict[str, Any]) -> None:
                done[line["stage"]] = line["update"]
                progress.update(task, completed=sum(done.values()), note=line["stage"])
                if log is not None:
                    log(line)

            _run_process((config, out, list(stages), data, threads), heard, stop)
            if not stop.is_set():
                progress.update(task, completed=total)

        waiting = {pool.submit(run, c, out): out for c, out in zip(configs, folders, strict=True)}
        try:
            for future in as_completed(waiting):
                if (error := future.exception()) is not None:
                    failures[waiting[future]] = error
        except BaseException:
            stop.set()
            raise
    if failures:
        (where, first), *others = failures.items()
        first.add_note(f"(in {where})")
        for out, error in others:
            first.add_note(f"also in {out}: {error}")
        raise first


def _run_process(work: tuple, heard: OnLog, stop: threading.Event) -> None:
    """Train in a process of its own, hearing its lines of metrics; when `stop` is set, tell it to leave off."""
    ours, theirs = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=_process_main, args=(*work, theirs))
    process.start()
    theirs.close()
    error, told = None, False
    try:
        while True:
            while not ours.poll(0.2):
                if stop.is_set() and not told:
                    process.terminate()
                    told = True
            said = ours.recv()
            if isinstance(said, BaseException):
                error = said
            else:
                heard(said)
    except EOFError:
        process.join()
    except BaseException:
        process.terminate()
        process.join()
        raise
    if error is not None:
        raise error
    if process.exitcode and not stop.is_set():
        raise ChildProcessError(
            f"{work[1]}: expected a finished training, its process ended with code {process.exitcode}; "
            "the same call goes on from its last checkpoint"
        )


def _process_main(
    config: TrainConfig, out: Path, stages: list[str], data: Transitions | None, threads: int, pipe: Connection
) -> None:
    """A process's work; told to end, it finishes the update at hand and writes its checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keyboard's goes to the parent as well, which tells us once
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        train(config, out, stages=stages, data=data, quiet=True, on_log=pipe.send)
    except KeyboardInterrupt:
        pass
    except Exception as error:
        pipe.send(error)
    finally:
        pipe.close()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
