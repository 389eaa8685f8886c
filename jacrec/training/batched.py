"""Train a stage for several seeds as one batched model: the loop of `jacrec.training.loop` for all of them at once.

Every seed has the batches, checkpoints and metrics that it has when trained alone, and the same numbers up to rounding:
batched matrix products sum in a different order. On a GPU several updates form one CUDA graph, nothing is read back
between two lines of metrics, and batches are gathered on the device. GPU speed has not been measured.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from rich.progress import Progress
from torch import Tensor

from jacrec.training.cuda_graph import CapturedStep
from jacrec.training.loop import LoopState, Metrics, Stage, load_checkpoint, metrics_line, save_checkpoint
from jacrec.training.progress import ProgressNote
from jacrec.training.streams import BLOCK, BatchStream, BlockPrefetcher, stack_blocks

CHUNK = 8
"""updates per CUDA graph; divides `BLOCK`"""


class BatchedStep(Protocol):
    """One update of S stages at once, on their shared memory."""

    def variant(self, update: int) -> bool:
        """Which of two sequences of operations update number `update` performs."""
        ...

    def schedule(self, update: int) -> tuple[float, ...]:
        """Hyperparameters that change from update to update, common to all seeds."""
        ...

    def scalar_names(self, variant: bool) -> tuple[str, ...]:
        """Names of the scalars that an update returns, in order."""
        ...

    def __call__(self, variant: bool, schedule: Tensor, *drawn: Tensor) -> dict[str, Tensor]:
        """Perform an update with the S streams' tensors (S, ...); return scalars (S,)."""
        ...


class BatchableStage(Stage, Protocol):
    """A stage that can be trained together with others of the same architecture."""

    stream: BatchStream

    @staticmethod
    def batched_step(stages: Sequence) -> BatchedStep:
        """The stages' step as one batched model's. They can no longer step alone."""
        ...


class BatchedStages:
    """Stages as one batched model. Their own `state`, `evaluate` and `modules` remain valid and show each one's share.

    Call `close` when done: it ends the threads and frees the graphs and tables.

    Args:
        graphs: run updates on tensors with fixed addresses, `CHUNK` at a time (on a GPU, as CUDA graphs).
            Default: on a GPU.
    """

    def __init__(self, members: Sequence[BatchableStage], graphs: bool | None = None):
        self.members = list(members)
        self.batched_step = type(self.members[0]).batched_step(self.members)
        self.device = self.members[0].stream.blocks.device
        self.graphs = self.device.type == "cuda" if graphs is None else graphs
        self.pool = ThreadPoolExecutor(min(len(self.members), os.cpu_count() or 1), "draw seed")
        batched_step, streams, pool = self.batched_step, [member.stream for member in self.members], self.pool

        def draw(block: int) -> tuple[Tensor, ...]:
            schedule = [batched_step.schedule(block * BLOCK + row) for row in range(BLOCK)]
            return torch.tensor(schedule, dtype=torch.float64), *stack_blocks(streams, block, pool)

        self.blocks = BlockPrefetcher(draw, self.device)
        self.block, self.tensors = -1, ()
        self.steps: dict[tuple[bool, ...], Callable[..., dict[str, Tensor]]] = {}
        # as `LoopState.sums`, with an axis of seeds: [sums…, count] (k + 1, S) by the joined names of k scalars
        self.sums: dict[str, Tensor] = {}

    def advance(self, update: int, at_most: int) -> int:
        """Perform update number `update` and possibly some that follow, `at_most` in total; return how many."""
        block, row = divmod(update, BLOCK)
        if block != self.block:
            self.block, self.tensors = block, self.blocks(block)
        count = CHUNK if self.graphs and at_most >= CHUNK and row % CHUNK == 0 else 1
        variants = tuple(self.batched_step.variant(update + i) for i in range(count))
        if variants not in self.steps:
            self._prepare(variants)
        self.steps[variants](*(t[row : row + count] for t in self.tensors))
        return count

    def _prepare(self, variants: tuple[bool, ...]) -> None:
        for variant in variants:
            names = self.batched_step.scalar_names(variant)
            shape = len(names) + 1, len(self.members)
            self.sums.setdefault(" ".join(names), torch.zeros(shape, dtype=torch.float64, device=self.device))
        step = partial(self._run_updates, variants)
        self.steps[variants] = CapturedStep(step, self.mutable_tensors) if self.graphs else step

    def close(self) -> None:
        """End the threads and release the memory."""
        self.steps.clear()  # they hold a reference to this object
        self.blocks.close()
        self.pool.shutdown()

    def mutable_tensors(self) -> list[Tensor]:
        """All tensors that updates change."""
        return [*(t for member in self.members for t in member.state().values()), *self.sums.values()]

    @torch.no_grad()
    def _run_updates(self, variants: tuple[bool, ...], *inputs: Tensor) -> dict[str, Tensor]:
        for i, variant in enumerate(variants):
            scalars = self.batched_step(variant, *(t[i] for t in inputs))
            values = list(scalars.values())
            self.sums[" ".join(self.batched_step.scalar_names(variant))] += torch.stack([*values, torch.ones_like(values[0])])
        return {}

    def load_sums(self, states: Sequence[LoopState]) -> None:
        """Continue from the sums of the stages' loop states."""
        for key in dict.fromkeys(key for state in states for key in state.sums):
            width = len(key.split()) + 1
            zero = torch.zeros(width, dtype=torch.float64, device=self.device)
            self.sums[key] = torch.stack([state.sums.get(key, zero) for state in states], 1)

    def store_sums(self, states: Sequence[LoopState]) -> None:
        """Copy the sums to the stages' loop states."""
        for s, state in enumerate(states):
            state.sums = {key: sums[:, s].clone() for key, sums in self.sums.items() if sums[-1, s] > 0}


def run_batched(
    members: Sequence[BatchableStage],
    checkpoints: Sequence[Path],
    metrics: Sequence[Metrics],
    *,
    log_every: int,
    checkpoint_every: int,
    progress: Progress,
    stop: threading.Event | None = None,
    graphs: bool | None = None,
) -> bool:
    """`jacrec.training.loop.run_stage` for several stages at once, each with its own checkpoint and metrics.

    If their checkpoints are at different updates, those behind are trained first until all are level. `seconds` in the
    metrics is the time for all stages together.

    Raises:
        FloatingPointError: a metric is not finite; a note names the folder. The last checkpoints are kept.
    """
    states = [load_checkpoint(member, path) for member, path in zip(members, checkpoints, strict=True)]
    name, updates = members[0].name, members[0].updates
    notes = [ProgressNote(own.trim(name, state.update)) for own, state in zip(metrics, states, strict=True)]
    task = progress.add_task(f"{name} x {len(members)}", total=updates, completed=min(s.update for s in states), note="")
    outputs = [_Output(*output) for output in zip(states, checkpoints, metrics, notes, strict=True)]
    while (rear := min(state.update for state in states)) < updates:
        selected = [i for i, state in enumerate(states) if state.update == rear]
        goal = min((state.update for state in states if state.update > rear), default=updates)
        with contextlib.closing(BatchedStages([members[i] for i in selected], graphs)) as group:
            show = partial(progress.update, task)
            if not _train_until(goal, group, [outputs[i] for i in selected], log_every, checkpoint_every, show, stop):
                return False
    progress.update(task, completed=updates)
    return True


class _Output(NamedTuple):
    """A stage's loop state and the files it writes."""

    state: LoopState
    checkpoint: Path
    metrics: Metrics
    note: ProgressNote


def _train_until(
    goal: int,
    group: BatchedStages,
    outputs: Sequence[_Output],
    log_every: int,
    checkpoint_every: int,
    show: Callable[..., None],
    stop: threading.Event | None,
) -> bool:
    """Train a group, whose stages are at the same update, up to update `goal`; False if it was stopped earlier."""
    states = [output.state for output in outputs]
    group.load_sums(states)
    before, start = [state.seconds for state in states], time.perf_counter()
    update, updates = states[0].update, group.members[0].updates
    while update < goal:
        stopped = stop is not None and stop.is_set()
        if not stopped:
            boundary = min(goal, *((update // every + 1) * every for every in (log_every, checkpoint_every)))
            update += group.advance(update, boundary - update)
        log = update % log_every == 0 or update == updates
        save = update % checkpoint_every == 0 or update == updates
        if not (stopped or log or save or update == goal):
            continue
        group.store_sums(states)  # waits for the device
        for state, seconds in zip(states, before, strict=True):
            state.update, state.seconds = update, seconds + time.perf_counter() - start
        if log and not stopped:
            for member, output in zip(group.members, outputs, strict=True):
                scored = time.perf_counter()
                scores = output.metrics.scores(member, update)
                start += time.perf_counter() - scored
                try:
                    line = metrics_line(member, output.state, scores)
                except FloatingPointError as error:
                    error.add_note(f"(in {output.metrics.path.parent})")
                    raise
                output.metrics.write(line)
                show(completed=update, note=output.note(line))
            for sums in group.sums.values():
                sums.zero_()
        if save or stopped:
            for member, output in zip(group.members, outputs, strict=True):
                save_checkpoint(member, output.state, output.checkpoint)
        if stopped:
            return False
    return True
