"""The training loop: steps, progress, metrics and checkpoints. A killed run resumes bit-identically.

A stage keeps all of its state in tensors that it changes in place, and derives its randomness from the update's number
(`jacrec.training.streams`). A checkpoint consists of those tensors, the sums behind the next line of metrics, and the
number of updates done.
"""

import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypedDict

import torch
from rich.progress import Progress
from torch import Tensor, nn

from jacrec.training.progress import ProgressNote
from jacrec.util.content import expect_content
from jacrec.util.files import naming, read_json_lines, write_text
from jacrec.util.tensors import read_tensors, with_checksum, without_checksum, write_tensors

Scores = Callable[["Stage", int], dict[str, float]]
"""further entries for a stage's line of metrics after so many updates, which training time does not include"""
REMEDY = "copy the file again, or delete it: its stage is then trained from the start"
OnLog = Callable[[dict[str, Any]], None]


class Stage(Protocol):
    """One training stage of a run."""

    name: str
    updates: int

    def step(self, update: int) -> dict[str, Tensor]:
        """Perform update number `update` (from 0); return scalars to be averaged in the metrics."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Errors on held-out data, for the metrics."""
        ...

    def state(self) -> dict[str, Tensor]:
        """The live tensors that determine everything later; resuming copies into them."""
        ...

    def modules(self) -> dict[str, nn.Module]:
        """The networks to be saved, by file stem."""
        ...


@dataclass
class LoopState:
    """Progress of a stage."""

    update: int = 0
    """updates done"""
    seconds: float = 0.0
    """training time so far"""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """since the last line of metrics: [sums…, count] of the scalars returned together, by their joined names; float64"""


class Metrics:
    """A run's `metrics.jsonl`, written by one or several stages at a time."""

    def __init__(self, path: Path, on_log: OnLog | None = None, scores: Scores | None = None):
        self.path, self.on_log, self.lock = path, on_log, threading.Lock()
        self.scores: Scores = scores or (lambda stage, update: {})

    def write(self, line: dict[str, Any]) -> None:
        """Append a line, flush, and call `on_log`, one line at a time."""
        text = json.dumps(line) + "\n"
        with self.lock:
            with naming(self.path, len(text)), self.path.open("a", encoding="utf-8") as file:
                file.write(text)
            if self.on_log is not None:
                self.on_log(line)

    def trim(self, stage: str, update: int) -> list[dict[str, Any]]:
        """Drop the lines that a stage wrote after the checkpoint it resumes from, and a truncated last line; its lines that remain.

        Raises:
            ValueError: the file has lines that training did not write.
        """
        with self.lock:
            if not self.path.is_file():
                return []
            lines = read_metrics(self.path)
            kept = [line for line in lines if line["stage"] != stage or line["update"] <= update]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        return [line for line in kept if line["stage"] == stage]


class MetricsLine(TypedDict):
    """What every line of metrics has."""

    stage: str
    update: int
    seconds: float


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; [] if there is no file.

    Raises:
        ValueError: the file has lines that training did not write.
    """
    lines = read_json_lines(path)
    for number, line in enumerate(lines, 1):
        expect_content(line, MetricsLine, path, f"delete object {number} of the file, or the file")
    return lines


def run_stage(
    stage: Stage,
    checkpoint: Path,
    metrics: Metrics,
    *,
    log_every: int,
    checkpoint_every: int,
    progress: Progress,
    stop: threading.Event | None = None,
) -> bool:
    """Train `stage` to its end, resuming from its last checkpoint; return whether the end was reached.

    Writes one line of metrics per `log_every` updates: stage, update, the means of the scalars since the previous line, the
    result of `evaluate`, and `seconds` of training so far, the only entry that is not reproducible. When `stop` is set, the
    current update is finished and a checkpoint written.

    Raises:
        FloatingPointError: a metric is not finite. The last checkpoint is kept.
    """
    state = load_checkpoint(stage, checkpoint)
    note = ProgressNote(metrics.trim(stage.name, state.update))
    task = progress.add_task(stage.name, total=stage.updates, completed=state.update, note="")
    shown = start = time.perf_counter()
    before = state.seconds
    while state.update < stage.updates:
        if stop is not None and stop.is_set():
            save_checkpoint(stage, state, checkpoint)
            return False
        _add(state.sums, stage.step(state.update))
        state.update += 1
        now = time.perf_counter()
        state.seconds = before + now - start
        if now - shown > 0.2:
            progress.update(task, completed=state.update)
            shown = now
        last = state.update == stage.updates
        if state.update % log_every == 0 or last:
            scored = time.perf_counter()
            scores = metrics.scores(stage, state.update)
            start += time.perf_counter() - scored
            line = metrics_line(stage, state, scores)
            metrics.write(line)
            progress.update(task, completed=state.update, note=note(line))
        if state.update % checkpoint_every == 0 or last:
            save_checkpoint(stage, state, checkpoint)
    progress.update(task, completed=state.update)
    return True


def _add(sums: dict[str, Tensor], scalars: dict[str, Tensor]) -> None:
    """Add an update's scalars to the sums, without reading from the device."""
    values = list(scalars.values())
    row = torch.stack([*values, torch.ones_like(values[0])])
    key = " ".join(scalars)
    if key not in sums:
        sums[key] = torch.zeros(len(row), dtype=torch.float64, device=row.device)
    sums[key] += row


def _means(sums: dict[str, Tensor]) -> dict[str, float]:
    totals: dict[str, list[float]] = {}
    for key, row in sums.items():
        *values, count = row.tolist()
        for name, value in zip(key.split(), values, strict=True):
            total = totals.setdefault(name, [0.0, 0.0])
            total[0] += value
            total[1] += count
    return {name: value / count for name, (value, count) in totals.items()}


def metrics_line(stage: Stage, state: LoopState, scores: dict[str, float]) -> dict[str, Any]:
    """A line of metrics from the sums since the previous line, which are cleared, and from further entries.

    Raises:
        FloatingPointError: a metric is not finite.
    """
    means = _means(state.sums)
    state.sums.clear()
    line = {
        "stage": stage.name,
        "update": state.update,
        **means,
        **stage.evaluate(),
        **scores,
        "seconds": round(state.seconds, 3),
    }
    broken = [f"{k} = {v}" for k, v in line.items() if isinstance(v, float) and not math.isfinite(v)]
    if broken:
        raise FloatingPointError(
            f"{stage.name}, update {state.update}: expected finite metrics, got {', '.join(broken)}; "
            "check the data for extreme values, or start a new run with a smaller learning rate"
        )
    return line


def save_checkpoint(stage: Stage, state: LoopState, path: Path) -> None:
    """Write the checkpoint atomically: a kill leaves either the old one or the new one."""
    tensors = {f"state.{k}": v.detach().cpu().clone() for k, v in stage.state().items()}
    tensors |= {f"sums.{k}": v.cpu() for k, v in state.sums.items()}
    write_tensors(path, tensors, with_checksum(tensors, {"update": str(state.update), "seconds": repr(state.seconds)}))


def load_checkpoint(stage: Stage, path: Path) -> LoopState:
    """Restore the stage from its checkpoint; the initial state if there is none.

    Raises:
        ValueError: the checkpoint is damaged, or belongs to other networks.
    """
    if not path.is_file():
        return LoopState()
    tensors, metadata = read_tensors(path, REMEDY)
    metadata = without_checksum(tensors, metadata, path, REMEDY)
    try:
        update, seconds = int(metadata.pop("update")), float(metadata.pop("seconds"))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: expected the number of updates and seconds as metadata, got none ({error}); {REMEDY}"
        ) from None
    if metadata or not 0 <= update <= stage.updates:
        raise ValueError(f"{path}: expected at most {stage.updates} updates, got {update} {metadata or ''}; {REMEDY}")
    live = stage.state()
    stored = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    shapes = {k: tuple(v.shape) for k, v in live.items()}
    if shapes != {k: tuple(v.shape) for k, v in stored.items()}:
        raise ValueError(
            f"{path}: expected a checkpoint with tensors {shapes}, got others; it belongs to another run: {REMEDY}"
        )
    for name, tensor in stored.items():
        live[name].copy_(tensor)
    device = next(iter(live.values())).device
    sums = {k.removeprefix("sums."): v.to(device) for k, v in tensors.items() if k.startswith("sums.")}
    return LoopState(update, seconds, sums)
