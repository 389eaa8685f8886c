"""Train one configuration with several seeds, each into its own folder as `jacrec.training.run.train` does.

On a GPU all seeds are one batched model (`jacrec.training.batched`). On a CPU they are separate processes, as many at a
time as there are processors: one seed's compiled update keeps a processor busy with little but matrix products, which a
batched model could not improve.
"""

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
from jacrec.training.folder import claimed, expect_own_policy
from jacrec.training.loop import Metrics, OnLog
from jacrec.training.progress import ProgressNote, make_progress
from jacrec.training.run import (
    STAGES,
    Evaluate,
    check_device,
    checkpoint_path,
    load_transitions,
    make_stage,
    policy_scores,
    save_networks,
    split_stages,
    torch_threads,
    train,
)
from jacrec.training.stages.rebrac import ReBRACStage
from jacrec.util.errors import expect_count, expect_one_of
from jacrec.util.files import user_path
from jacrec.util.processors import processors
from jacrec.util.signals import OrderlyExit, handle_signals, is_interrupt

STARTED = "started"
"""first message of a process"""
SPAWN = multiprocessing.get_context("spawn")  # fork would copy torch's thread pool in an undefined state


def seed_folder(out: str | Path, seed: int) -> Path:
    """A seed's folder: `out` with {seed} filled in, or the subfolder seed-SEED."""
    return user_path(str(out).replace("{seed}", str(seed))) if "{seed}" in str(out) else user_path(out) / f"seed-{seed}"


def train_seeds(
    config: TrainConfig,
    seeds: Sequence[int],
    out: str | Path,
    *,
    stages: Sequence[str] = STAGES,
    data: Transitions | None = None,
    batched: bool | None = None,
    at_once: int | None = None,
    extend: bool = False,
    evaluate: Evaluate | None = None,
    quiet: bool = False,
    on_log: OnLog | None = None,
) -> list[Path]:
    """`train` for every seed; return the folders. Each is an ordinary run that can be resumed, evaluated and loaded as such.

    A seed has the same initial weights, batches and noise as when trained alone. In processes it is bit-identical to training
    alone with the same number of threads. In a batched model it differs by rounding; the two can be exchanged at any
    checkpoint. Interruptions are handled as in `train`.

    Args:
        config: its seed is not used.
        out: the folders, see `seed_folder`.
        batched: train one batched model instead of processes; default: on a GPU.
        at_once: number of processes at a time; default: the number of processors divided by config.threads (or by 1).
        extend, evaluate: as in `train`; for processes, `evaluate` has to be picklable.
        on_log: called with every line of metrics and its "seed", from the threads of several seeds if they are processes.

    Raises:
        ValueError: a folder contains something else, the seeds are not distinct, or the data are unsuitable.
        FloatingPointError: training diverged. With processes, the other seeds are finished first.
        ChildProcessError: a process died, likewise. Notes on all these errors name the folders concerned.
    """
    seeds = list(seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: expected one or more distinct integers, got {seeds}")
    for stage in stages:
        expect_one_of("stages", stage, STAGES)
    configs = [replace(config, seed=seed) for seed in seeds]
    folders = [seed_folder(out, seed) for seed in seeds]
    device = check_device(config)
    if batched is None:
        batched = device.type == "cuda"
    if batched:
        _train_batched(configs, folders, stages, load_transitions(config, data), extend, evaluate, quiet, on_log)
        return folders
    threads = config.threads or 1
    if at_once is None:
        at_once = max(1, processors() // threads)
    expect_count("at_once", at_once, 1)
    _train_in_processes(configs, folders, stages, data, threads, min(at_once, len(seeds)), extend, evaluate, quiet, on_log)
    return folders


def _with_seed(on_log: OnLog | None, seed: int) -> OnLog | None:
    return None if on_log is None else lambda line: on_log({"seed": seed, **line})


def _train_batched(
    configs: list[TrainConfig],
    folders: list[Path],
    stages: Sequence[str],
    data: Transitions,
    extend: bool,
    evaluate: Evaluate | None,
    quiet: bool,
    on_log: OnLog | None,
) -> None:
    first, stop = configs[0], threading.Event()
    metrics = []
    for c, out in zip(configs, folders, strict=True):
        scores = None if evaluate is None else policy_scores(evaluate, c, data, out, stages)
        metrics.append(Metrics(out / "metrics.jsonl", _with_seed(on_log, c.seed), scores))

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

    with OrderlyExit() as stack:
        stack.enter_context(determinism(first))
        for config, out in zip(configs, folders, strict=True):
            if "rebrac" in stages:
                expect_own_policy(out)
            stack.enter_context(claimed(out, config, data, extend=extend))
        threads = first.threads or torch.get_num_threads()
        stack.enter_context(torch_threads(threads))
        progress = stack.enter_context(make_progress(quiet))
        pool = stack.enter_context(ThreadPoolExecutor(1))  # the main thread stays free to handle keyboard interrupts
        try:
            first_stages, then = split_stages(stages, first)
            for name in (*first_stages, *then):
                pool.submit(run, name).result()
        finally:
            stop.set()


def make_batchable_stages(
    name: str, configs: Sequence[TrainConfig], data: Transitions, folders: Sequence[Path | None] | None = None
) -> Sequence[BatchableStage]:
    """One untrained stage per configuration, suitable for a batched model. ReBRAC stages share their rows on the device.

    `folders` contain the policies for tilted world models.
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
    extend: bool,
    evaluate: Evaluate | None,
    quiet: bool,
    on_log: OnLog | None,
) -> None:
    stop, failures = threading.Event(), {}
    with make_progress(quiet) as progress, ThreadPoolExecutor(at_once) as pool:

        def run(config: TrainConfig, out: Path) -> None:
            if stop.is_set():
                return
            log, done = _with_seed(on_log, config.seed), dict.fromkeys(stages, 0)
            notes = {name: ProgressNote() for name in stages}
            total = sum(getattr(config, name).updates for name in stages)
            task = progress.add_task(f"seed {config.seed}", total=total, note="")

            def on_line(line: dict[str, Any]) -> None:
                done[line["stage"]] = line["update"]
                progress.update(task, completed=sum(done.values()), note=f"{line['stage']} {notes[line['stage']](line)}")
                if log is not None:
                    log(line)

            _run_process((config, out, list(stages), data, threads, extend, evaluate), on_line, stop)
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


def _run_process(work: tuple, on_line: OnLog, stop: threading.Event) -> None:
    """Train in a separate process and pass on its lines of metrics; terminate it when `stop` is set."""
    receiver, sender = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=_process_main, args=(*work, sender))
    process.start()
    sender.close()
    error, terminated, started = None, False, False
    try:
        while True:
            while not receiver.poll(0.2):
                if stop.is_set() and not terminated:
                    process.terminate()
                    terminated = True
            message = receiver.recv()
            if message == STARTED:
                started = True
            elif isinstance(message, BaseException):
                error = message
            else:
                on_line(message)
    except EOFError:
        process.join()
    except BaseException:
        process.terminate()
        process.join()
        raise
    if error is not None:
        raise error
    if process.exitcode == 1 and not started and not stop.is_set():
        raise ChildProcessError(
            f"{work[1]}: expected a process that can import the calling script, got exit code 1 before it started; call "
            'train_seeds under `if __name__ == "__main__":`, since every process imports the script again'
        )
    if process.exitcode and not stop.is_set():
        raise ChildProcessError(
            f"{work[1]}: expected training to finish, got exit code {process.exitcode} of its process; "
            "repeat the call to resume from the last checkpoint"
        )


def _process_main(
    config: TrainConfig,
    out: Path,
    stages: list[str],
    data: Transitions | None,
    threads: int,
    extend: bool,
    evaluate: Evaluate | None,
    pipe: Connection,
) -> None:
    """Entry point of a process. On SIGTERM it finishes the current update and writes its checkpoint."""
    try:
        handle_signals()
        threading.Thread(target=_exit_with_parent, daemon=True).start()
        pipe.send(STARTED)
        torch.set_num_threads(threads)
        train(config, out, stages=stages, data=data, extend=extend, evaluate=evaluate, quiet=True, on_log=pipe.send)
    except (KeyboardInterrupt, BrokenPipeError):  # or the parent has ended, and nobody listens
        pass
    except Exception as error:
        if not is_interrupt(error):
            pipe.send(error)
    finally:
        pipe.close()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
