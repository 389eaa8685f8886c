"""Several seeds of a stage as one batched model: the loop of `jacrec.training.loop` for all of them at once.

Every seed keeps the batches, the checkpoints and the lines of metrics that it has when trained alone, and its numbers are the
same up to rounding: matrix products of a batch add in another order. On a GPU a few updates at a time are one CUDA graph,
nothing is read back between two lines of metrics, and the batches are gathered on the device. Speed on a GPU: not measured.
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
from jacrec.training.loop import LoopState, Metrics, Stage, load_checkpoint, metrics_line, progress_note, save_checkpoint
from jacrec.training.streams import BLOCK, BatchStream, BlockPrefetcher, stack_blocks

CHUNK = 8
"""updates that one CUDA graph holds; divides `BLOCK`"""


class BatchedStep(Protocol):
    """An update of S stages at once, on their joint memory."""

    def kind(self, update: int) -> bool:
        """Updates of one kind do the same operations."""
        ...

    def numbers(self, update: int) -> tuple[float, ...]:
        """What changes from update to update, for all seeds alike."""
        ...

    def scalars(self, kind: bool) -> tuple[str, ...]:
        """The names of what an update answers with, in order."""
        ...

    def __call__(self, kind: bool, numbers: Tensor, *drawn: Tensor) -> dict[str, Tensor]:
        """An update on the S streams' tensors (S, ...); scalars (S,)."""
        ...


class BatchableStage(Stage, Protocol):
    """A stage that can be trained beside others of its make."""

    stream: BatchStream

    @staticmethod
    def batched_step(stages: Sequence) -> BatchedStep:
        """Their step as one batched model's; they can no longer step alone."""
        ...


class BatchedStages:
    """Members as one batched model. Their own `state`, `evaluate` and `modules` go on showing each one's share.

    Args:
        graphs: whether updates run on tensors that keep their addresses, `CHUNK` at a time; None: on a GPU, where they are
            CUDA graphs then.

    `close` it: only then its threads end, and its graphs and tables are freed with it.
    """

    def __init__(self, members: Sequence[BatchableStage], graphs: bool | None = None):
        self.members = list(members)
        self.joint = type(self.members[0]).batched_step(self.members)
        device = self.members[0].stream.blocks.device
        self.graphs = device.type == "cuda" if graphs is None else graphs
        self.device = device
        self.pool = ThreadPoolExecutor(min(len(self.members), os.cpu_count() or 1), "draw seed")
        joint, streams, pool = self.joint, [member.stream for member in self.members], self.pool

        def drawn(block: int) -> tuple[Tensor, ...]:
            numbers = [joint.numbers(block * BLOCK + row) for row in range(BLOCK)]
            return torch.tensor(numbers, dtype=torch.float64), *stack_blocks(streams, block, pool)

        self.blocks = BlockPrefetcher(drawn, device)
        self.block, self.tensors = -1, ()
        self.steps: dict[tuple[bool, ...], Callable[..., dict[str, Tensor]]] = {}
        # [sums…, count] of the scalars that come together, by their joined names, (k + 1, S): as `LoopState.sums`
        self.sums: dict[str, Tensor] = {}

    def advance(self, update: int, at_most: int) -> int:
        """Do update number `update` and perhaps some that follow, `at_most` in all; how many were done."""
        block, row = divmod(update, BLOCK)
        if block != self.block:
            self.block, self.tensors = block, self.blocks(block)
        count = CHUNK if self.graphs and at_most >= CHUNK and row % CHUNK == 0 else 1
        kinds = tuple(self.joint.kind(update + i) for i in range(count))
        if kinds not in self.steps:
            self._prepare(kinds)
        self.steps[kinds](*(t[row : row + count] for t in self.tensors))
        return count

    def _prepare(self, kinds: tuple[bool, ...]) -> None:
        for kind in kinds:
            names = self.joint.scalars(kind)
            shape = len(names) + 1, len(self.members)
            self.sums.setdefault(" ".join(names), torch.zeros(shape, dtype=torch.float64, device=self.device))
        step = partial(self._run_updates, kinds)
        self.steps[kinds] = CapturedStep(step, self.mutable_tensors) if self.graphs else step

    def close(self) -> None:
        """No further update is wanted."""
        self.steps.clear()  # they hold this object
        self.blocks.close()
        self.pool.shutdown()

    def mutable_tensors(self) -> list[Tensor]:
        """All that updates change."""
        return [*(t for member in self.members for t in member.state().values()), *self.sums.values()]

    @torch.no_grad()
    def _run_updates(self, kinds: tuple[bool, ...], *inputs: Tensor) -> dict[str, Tensor]:
        for i, kind in enumerate(kinds):
            scalars = self.joint(kind, *(t[i] for t in inputs))
            values = list(scalars.values())
            self.sums[" ".join(self.joint.scalars(kind))] += torch.stack([*values, torch.ones_like(values[0])])
        return {}

    def load_sums(self, positions: Sequence[LoopState]) -> None:
        """Go on from the sums of the members' positions."""
        for key in dict.fromkeys(key for here in positions for key in here.sums):
            width = len(key.split()) + 1
            zero = torch.zeros(width, dtype=torch.float64, device=self.device)
            self.sums[key] = torch.stack([here.sums.get(key, zero) for here in positions], 1)

    def store_sums(self, positions: Sequence[LoopState]) -> None:
        """Put the sums into the members' positions."""
        for s, here in enumerate(positions):
            here.sums = {key: sums[:, s].clone() for key, sums in self.sums.items() if sums[-1, s] > 0}


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
    """`jacrec.training.loop.run_stage` for several members at once, each with its own checkpoint and metrics.

    Where their checkpoints stand at different updates, those behind go first until all are level. `seconds` in the metrics
    is the time of all members together.

    Raises:
        FloatingPointError: a metric is no longer finite; a note names the folder. The last checkpoints stay.
    """
    positions = [load_checkpoint(member, path) for member, path in zip(members, checkpoints, strict=True)]
    name, updates = members[0].name, members[0].updates
    for own, here in zip(metrics, positions, strict=True):
        own.trim(name, here.update)
    task = progress.add_task(f"{name} x {len(members)}", total=updates, completed=min(p.update for p in positions), note="")
    files = [_MemberFiles(*place) for place in zip(positions, checkpoints, metrics, strict=True)]
    while (rear := min(here.update for here in positions)) < updates:
        chosen = [i for i, here in enumerate(positions) if here.update == rear]
        goal = min((here.update for here in positions if here.update > rear), default=updates)
        with contextlib.closing(BatchedStages([members[i] for i in chosen], graphs)) as group:
            show = partial(progress.update, task)
            if not _train_group(goal, group, [files[i] for i in chosen], log_every, checkpoint_every, show, stop):
                return False
    progress.update(task, completed=updates)
    return True


class _MemberFiles(NamedTuple):
    """Where a member stands, and where it writes."""

    loop: LoopState
    checkpoint: Path
    metrics: Metrics


def _train_group(
    goal: int,
    group: BatchedStages,
    files: Sequence[_MemberFiles],
    log_every: int,
    checkpoint_every: int,
    show: Callable[..., None],
    stop: threading.Event | None,
) -> bool:
    """Train a group, whose members are level, up to update `goal`; False if it was stopped before."""
    positions = [place.loop for place in files]
    group.load_sums(positions)
    before, start = [here.seconds for here in positions], time.perf_counter()
    update, updates = positions[0].update, group.members[0].updates
    while update < goal:
        stopped = stop is not None and stop.is_set()
        if not stopped:
            boundary = min(goal, *((update // every + 1) * every for every in (log_every, checkpoint_every)))
            update += group.advance(update, boundary - update)
        log = update % log_every == 0 or update == updates
        save = update % checkpoint_every == 0 or update == updates
        if not (stopped or log or save or update == goal):
            continue
        group.store_sums(positions)  # waits for the device
        for here, seconds in zip(positions, before, strict=True):
            here.update, here.seconds = update, seconds + time.perf_counter() - start
        if log and not stopped:
            for member, place in zip(group.members, files, strict=True):
                try:
                    line = metrics_line(member, place.loop)
                except FloatingPointError as error:
                    error.add_note(f"(in {place.metrics.path.parent})")
                    raise
                place.metrics.write(line)
                show(completed=update, note=progress_note(line))
            for sums in group.sums.values():
                sums.zero_()
        if save or stopped:
            for member, place in zip(group.members, files, strict=True):
                save_checkpoint(member, place.loop, place.checkpoint)
        if stopped:
            return False
    return True
