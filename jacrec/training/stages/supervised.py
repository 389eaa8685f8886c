"""What the supervised stages share: descent on an `MLP`, the stage around it, and errors with their uncertainty."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from jacrec.models.networks import MLP
from jacrec.training.config import DynamicsConfig, RewardConfig
from jacrec.training.cuda_graph import CapturedStep
from jacrec.training.flat import Adam, FlatParameterRows, FlatParameters
from jacrec.training.passes import MLPPass
from jacrec.training.stages.examples import Batch, Examples
from jacrec.training.streams import BatchStream


class ScheduledRates(NamedTuple):
    """What changes from update to update."""

    rate: float
    """Adam's step"""
    pace: float
    """how far the averaged weights move"""


class MLPDescent:
    """`descend(batch)`: a step on a batch's loss by Adam, with averaged weights; of one network, or of S side by side.

    The batch's tensors lead with S where `flat` holds S rows; then the losses are (S,).

    Args:
        mlp: a network of the make that `flat` holds; the heads of a stack learn side by side, each from its own (B, ·).
        prefix: of the network's parameters among those of `flat`.
        averaged: where the averaged weights are; None for none.
    """

    def __init__(
        self,
        mlp: MLP,
        prefix: str,
        flat: FlatParameters | FlatParameterRows,
        averaged: FlatParameters | FlatParameterRows | None,
        adam: Adam,
    ):
        self.flat, self.averaged, self.adam = flat, averaged, adam

        def inner(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items()}

        self.net = MLPPass(mlp, inner(flat.gradient_of), parameters=inner(flat.value_of), stacked=mlp.stack is not None)

    @torch.no_grad()
    def descend(self, batch: Batch, pace: float | Tensor) -> Tensor:
        """A step; the loss before it."""
        prediction, tape = self.net.record(batch.x)
        loss, bar = batch.loss_and_gradient(prediction, partial(self.net.push, tape))
        self.net.pull(tape, bar)
        self.adam.step()
        if self.averaged is not None:
            self.averaged.move_towards(self.flat, pace)
        return loss


class Regression:
    """Regression by an `MLP` inside `module`, with Adam with a bound on the gradient's norm and averaged weights.

    Args:
        module: what is trained.
        averaged: a second module of the same make, for the moving average of the weights; with config.ema = 0 it is
            not used, and `self.averaged` is `module`.
        mlp: the network inside `module`.
        prefix: of the network's parameters among the module's.
        config: updates, lr, lr_schedule, max_grad_norm, ema.
        capturable: whether `descend` can be part of a CUDA graph.
    """

    def __init__(
        self,
        module: nn.Module,
        averaged: nn.Module,
        mlp: MLP,
        prefix: str,
        config: DynamicsConfig | RewardConfig,
        capturable: bool = False,
    ):
        self.module, self.config, self.mlp, self.prefix = module, config, mlp, prefix
        self.averaged = averaged if config.ema else module
        self.flat = FlatParameters(module)
        self.flat_averaged = FlatParameters(averaged) if config.ema else self.flat
        self.adam = Adam(self.flat, config.lr, config.max_grad_norm, held=capturable)
        # how far the average moves: a number, or a tensor where a graph has to see it change
        self.pace: float | Tensor = self.flat.value.new_ones(()) if capturable else 1.0
        self.descent = MLPDescent(mlp, prefix, self.flat, self.flat_averaged if config.ema else None, self.adam)

    def update(self, x: Tensor, goal: Tensor, update: int) -> Tensor:
        """Step number `update` on mean (net(x) − goal)², x (B, in), goal (B, out); the loss before it."""
        self.schedule(update)
        return self.descend(Batch(x, goal))

    def scheduled(self, update: int) -> ScheduledRates:
        """What update number `update` goes by."""
        c = self.config
        scale = 1.0 if c.lr_schedule == "constant" else 0.5 * (1 + math.cos(math.pi * update / c.updates))
        return ScheduledRates(scale * c.lr, 1 - min(c.ema, (1 + update) / (10 + update)))

    def schedule(self, update: int) -> None:
        """Set what changes from update to update: the learning rate and the average's pace."""
        rate, pace = self.scheduled(update)
        self.adam.set_rate(rate)
        if isinstance(self.pace, Tensor):
            self.pace.fill_(pace)
        else:
            self.pace = pace

    def descend(self, batch: Batch) -> Tensor:
        """A step as scheduled; the loss before it."""
        return self.descent.descend(batch, self.pace)

    def state(self) -> dict[str, Tensor]:
        """The live tensors that a checkpoint holds."""
        average = {"averaged": self.flat_averaged.value} if self.config.ema else {}
        return {**self.adam.state(), **average}


def make_update(regression: Regression, examples: Examples, capturable: bool) -> Callable[..., dict[str, Tensor]]:
    """An update on the examples of an index, as scheduled; where `capturable`, a `CapturedStep`.

    It holds no stage: a stage's table is freed with the stage, and waits for no collection of cycles.
    """

    @torch.no_grad()
    def descend(index: Tensor, *random: Tensor) -> dict[str, Tensor]:
        return {"loss": regression.descend(examples(index, *random))}

    return CapturedStep(descend, lambda: regression.state().values()) if capturable else descend


class BatchedRegression:
    """Several regressions of one make as one batched model; a `jacrec.training.batched.BatchedStep`.

    Their vectors become its rows; they can no longer descend alone.
    """

    def __init__(self, regressions: Sequence[Regression], examples: Sequence[Examples]):
        first = self.first = regressions[0]
        rows = FlatParameterRows([r.flat for r in regressions])
        averaged = FlatParameterRows([r.flat_averaged for r in regressions]) if first.config.ema else None
        adam = Adam.from_rows([r.adam for r in regressions], rows, held=True)
        self.descent = MLPDescent(first.mlp, first.prefix, rows, averaged, adam)
        pool, self.start = concat_tables([e.rows for e in examples])
        self.examples = replace(examples[0], rows=pool)

    def kind(self, update: int) -> bool:
        """All updates are of one kind."""
        return True

    def numbers(self, update: int) -> tuple[float, ...]:
        """Learning rate and pace of an update."""
        return self.first.scheduled(update)

    def scalars(self, kind: bool) -> tuple[str, ...]:
        """What an update answers with."""
        return ("loss",)

    def __call__(self, kind: bool, numbers: Tensor, *drawn: Tensor) -> dict[str, Tensor]:
        """An update; drawn are index (S, B), counting within each one's own rows, and what the examples need besides."""
        index, *random = drawn
        rate, pace = numbers.unbind()
        self.descent.adam.set_rate(rate)
        batch = self.examples(index + self.start, *random)
        return {"loss": self.descent.descend(batch, pace.to(batch.x.dtype))}


class SupervisedStage:
    """A stage of `jacrec.training.loop` that is a regression; what it learns from and is tested on is a subclass's own."""

    name: str
    """of the network's file too"""
    regression: Regression
    examples: Examples
    stream: BatchStream
    descend: Callable[..., dict[str, Tensor]]

    def step(self, update: int) -> dict[str, Tensor]:
        """Update number `update`, counted from 0."""
        self.regression.schedule(update)
        return self.descend(*self.stream.at(update))

    @staticmethod
    def batched_step(stages: "Sequence[SupervisedStage]") -> BatchedRegression:
        """Their step as one batched model's; they can no longer step alone."""
        return BatchedRegression([stage.regression for stage in stages], [stage.examples for stage in stages])

    def state(self) -> dict[str, Tensor]:
        """The live tensors that a checkpoint holds."""
        return self.regression.state()

    def modules(self) -> dict[str, nn.Module]:
        """The finished network by file name: the averaged weights."""
        return {self.name: self.regression.averaged}


def concat_tables(tables: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tables of rows as one, and where each begins, (S, 1); a table shared by all stays as it is."""
    if all(table is tables[0] for table in tables):
        return tables[0], torch.zeros(len(tables), 1, dtype=torch.int64, device=tables[0].device)
    lengths = torch.tensor([len(table) for table in tables], device=tables[0].device)
    return torch.cat(list(tables)), (lengths.cumsum(0) - lengths).unsqueeze(-1)


def rmse(squared_error: Tensor) -> tuple[float, float]:
    """√(mean e) of squared errors e (n,), and its standard error by the delta method, sd(e) / (2 √n RMSE)."""
    e = squared_error.double()
    root = math.sqrt(e.mean().item())
    if len(e) < 2 or root == 0.0:
        return root, 0.0
    return root, e.std().item() / (2 * math.sqrt(len(e)) * root)
