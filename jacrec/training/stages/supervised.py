"""Shared parts of the supervised stages: regression by an `MLP`, the stage around it, and RMSE with standard errors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from jacrec.models.networks import MLP
from jacrec.training.config import DynamicsConfig, RewardConfig
from jacrec.training.cuda_graph import CapturedStep
from jacrec.training.flat import Adam, FlatParameterRows, FlatParameters
from jacrec.training.passes import MLPPass, regression_unsupported_reason
from jacrec.training.stages.examples import Batch, Examples, NoisedExamples
from jacrec.training.streams import BatchStream, Draw, derive_seed

if TYPE_CHECKING:
    from jacrec.kernels.cpu.regression.fused import FusedRegression

Module = TypeVar("Module", bound=nn.Module)


class Schedule(NamedTuple):
    """Hyperparameters that change from update to update."""

    lr: float
    """Adam's learning rate"""
    averaging: float
    """step of the averaged weights towards the current ones"""


class MLPTrainer:
    """`step(batch, averaging)`: one Adam step on a batch's loss and one of the averaged weights, for one network or S.

    If `flat` holds S rows, the batch's tensors have a leading axis S and the losses are (S,).

    Args:
        mlp: a network of the architecture that `flat` holds; the heads of a stack are trained in parallel, each on its
            own (B, ·).
        prefix: of the network's parameter names within `flat`.
        averaged: the averaged weights, or None.
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

        def strip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items()}

        self.net = MLPPass(mlp, strip(flat.gradient_of), parameters=strip(flat.value_of), stacked=mlp.stack is not None)

    @torch.no_grad()
    def step(self, batch: Batch, averaging: float | Tensor) -> Tensor:
        """Perform an update; return the loss before it."""
        prediction, tape = self.net.record(batch.x)
        loss, bar = batch.loss_and_gradient(prediction, partial(self.net.push, tape))
        self.net.pull(tape, bar)
        self.adam.step()
        if self.averaged is not None:
            self.averaged.move_towards(self.flat, averaging)
        return loss


class Regression:
    """Regression by an `MLP` inside `module`: Adam with gradient clipping, and averaged weights.

    Args:
        module: the module to train.
        averaged: a second module of the same architecture for the moving average of the weights. With config.ema = 0 it
            is unused, and `self.averaged` is `module`.
        mlp: the network inside `module`.
        prefix: of the network's parameter names within the module.
        config: updates, lr, lr_schedule, max_grad_norm, ema.
        capturable: whether `step` can be part of a CUDA graph.
        fused: make a step as one call of compiled code (`jacrec.kernels.cpu.regression.fused`). Default: if possible, i.e. for
            least squares by a single network on a CPU with Numba, unless steps must be capturable.

    Raises:
        ValueError: `fused=True` where it is not supported; the message gives the reason.
    """

    def __init__(
        self,
        module: nn.Module,
        averaged: nn.Module,
        mlp: MLP,
        prefix: str,
        config: DynamicsConfig | RewardConfig,
        capturable: bool = False,
        *,
        fused: bool | None = None,
    ):
        self.module, self.config, self.mlp, self.prefix = module, config, mlp, prefix
        self.averaged = averaged if config.ema else module
        self.flat = FlatParameters(module)
        self.flat_averaged = FlatParameters(averaged) if config.ema else self.flat
        self.adam = Adam(self.flat, config.lr, config.max_grad_norm, tensor_lr=capturable)
        # a tensor if a CUDA graph must see it change, otherwise a number
        self.averaging: float | Tensor = self.flat.value.new_ones(()) if capturable else 1.0
        self.trainer = MLPTrainer(mlp, prefix, self.flat, self.flat_averaged if config.ema else None, self.adam)
        self.capturable, self.wants_fused, self.examples = capturable, fused, None
        self.is_fused = self._can_be_fused()

    def learn_from(self, examples: Examples) -> None:
        """Set the examples of `step_on`."""
        self.examples, self.is_fused = examples, self._can_be_fused(examples.least_squares)

    def _can_be_fused(self, least_squares: bool = True) -> bool:
        reason = regression_unsupported_reason(self.mlp, self.flat.value, least_squares)
        if self.capturable:
            reason = "steps must be capturable"
        if self.wants_fused and reason:
            raise ValueError(f"fused: expected a supported configuration, got True although {reason}; omit it")
        return self.wants_fused is not False and reason is None

    @cached_property
    def fused(self) -> "FusedRegression":
        """The compiled step, made when the first one is taken."""
        from jacrec.kernels.cpu.regression.fused import FusedRegression, Trained

        flat, steps, e = self.flat, self.adam.state()["step"], self.examples
        trained = Trained(self.mlp, flat.value, self.flat_averaged.value, flat.gradient, *self.adam.moments(), steps)
        fused = FusedRegression(trained, self.config.max_grad_norm)
        if type(e) is Examples:
            fused.gather_rows(e.rows, e.split)
        elif type(e) is NoisedExamples:
            fused.gather_noised(e.rows, e.split, e.signal, e.corruption, e.embedding, of_noise=e.of_noise)
        return fused

    def update(self, x: Tensor, goal: Tensor, update: int) -> Tensor:
        """Perform update number `update` on mean (net(x) − goal)², x (B, in), goal (B, out); return the loss before it."""
        self.apply_schedule(update)
        return self.step(Batch(x, goal))

    def schedule(self, update: int) -> Schedule:
        """The learning rate and averaging step of update number `update`."""
        c = self.config
        scale = 1.0 if c.lr_schedule == "constant" else 0.5 * (1 + math.cos(math.pi * update / c.updates))
        return Schedule(scale * c.lr, 1 - min(c.ema, (1 + update) / (10 + update)))

    def apply_schedule(self, update: int) -> None:
        """Set the learning rate and averaging step of update number `update`."""
        lr, averaging = self.schedule(update)
        self.adam.set_lr(lr)
        if isinstance(self.averaging, Tensor):
            self.averaging.fill_(averaging)
        else:
            self.averaging = averaging

    def step(self, batch: Batch) -> Tensor:
        """Perform an update with the current schedule; return the loss before it."""
        if self.is_fused:
            return self.fused.step(batch.x, batch.goal, self.adam.lr_now(), float(self.averaging))
        return self.trainer.step(batch, self.averaging)

    def step_on(self, *drawn: Tensor) -> Tensor:
        """The same on the examples that these random tensors select."""
        if self.is_fused and self.fused.gathers:
            return self.fused.step_on(self.adam.lr_now(), float(self.averaging), *drawn)
        assert self.examples is not None
        return self.step(self.examples(*drawn))

    def state(self) -> dict[str, Tensor]:
        """The live tensors to be stored in a checkpoint."""
        average = {"averaged": self.flat_averaged.value} if self.config.ema else {}
        return {**self.adam.state(), **average}


def make_update(regression: Regression, capturable: bool) -> Callable[..., dict[str, Tensor]]:
    """A function that performs an update on the regression's examples of an index; a `CapturedStep` if `capturable`.

    It holds no reference to the stage, so that a stage's table is freed with the stage, without garbage collection.
    """

    @torch.no_grad()
    def update(*drawn: Tensor) -> dict[str, Tensor]:
        return {"loss": regression.step_on(*drawn)}

    return CapturedStep(update, lambda: regression.state().values()) if capturable else update


class BatchedRegression:
    """Several regressions of the same architecture as one batched model; a `jacrec.training.batched.BatchedStep`.

    Their parameter vectors become its rows. They can no longer step alone.
    """

    def __init__(self, regressions: Sequence[Regression], examples: Sequence[Examples]):
        first = self.first = regressions[0]
        for regression in regressions:
            regression.is_fused = False  # its vectors move
        rows = FlatParameterRows([r.flat for r in regressions])
        averaged = FlatParameterRows([r.flat_averaged for r in regressions]) if first.config.ema else None
        adam = Adam.from_rows([r.adam for r in regressions], rows, tensor_lr=True)
        self.trainer = MLPTrainer(first.mlp, first.prefix, rows, averaged, adam)
        table, self.start = concat_tables([e.rows for e in examples])
        self.examples = replace(examples[0], rows=table)

    def variant(self, update: int) -> bool:
        """All updates perform the same operations."""
        return True

    def schedule(self, update: int) -> tuple[float, ...]:
        """Learning rate and averaging step of an update."""
        return self.first.schedule(update)

    def scalar_names(self, variant: bool) -> tuple[str, ...]:
        """Names of the scalars that an update returns."""
        return ("loss",)

    def __call__(self, variant: bool, schedule: Tensor, *drawn: Tensor) -> dict[str, Tensor]:
        """Perform an update. `drawn` is index (S, B), relative to each one's own rows, and the examples' random tensors."""
        index, *random = drawn
        lr, averaging = schedule.unbind()
        self.trainer.adam.set_lr(lr)
        batch = self.examples(index + self.start, *random)
        return {"loss": self.trainer.step(batch, averaging.to(batch.x.dtype))}


class SupervisedStage:
    """A stage of `jacrec.training.loop` that is a regression. Subclasses define the examples and the evaluation."""

    name: str
    """also the stem of the network's file"""
    updates: int
    regression: Regression
    examples: Examples
    stream: BatchStream
    run_update: Callable[..., dict[str, Tensor]]

    def _build(
        self,
        make: Callable[[], Module],
        set_scales: Callable[[Module], None],
        config: DynamicsConfig | RewardConfig,
        seed: int,
        device,
        dtype: torch.dtype,
        capturable: bool | None,
        start: nn.Module | None,
        fused: bool | None,
    ) -> Module:
        """Create the network and its regression; return the network.

        Args:
            make: builds the network; its initial weights depend on (seed, stage) alone.
            set_scales: sets the network's scales from the data, unless it continues from `start`.
            capturable: whether `step` can be part of a CUDA graph; default: on a GPU, where a graph is then used.
            start: a network of this configuration whose weights and scales to continue from.
            fused: see `Regression`.
        """

        def network() -> Module:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(seed, self.name, "networks"))
                model = make()
            if start is None:
                set_scales(model)
            else:
                model.load_state_dict(start.state_dict())
            # float32 is the parameters' own precision; buffers in float64 then keep theirs
            return model.to(device) if dtype == torch.float32 else model.to(device, dtype)

        model = network()
        self.updates = config.updates
        self.capturable = torch.device(device).type == "cuda" if capturable is None else capturable
        self.regression = Regression(model, network(), *network_of(model), config, self.capturable, fused=fused)
        return model

    def _learn_from(self, examples: Examples, draw: Draw, seed: int, device) -> None:
        """Set the examples and the stream of random tensors that select them."""
        self.examples = examples
        self.regression.learn_from(examples)
        self.stream = BatchStream(seed, self.name, draw, device)
        self.run_update = make_update(self.regression, self.capturable)

    def step(self, update: int) -> dict[str, Tensor]:
        """Perform update number `update`, counted from 0."""
        self.regression.apply_schedule(update)
        return self.run_update(*self.stream.at(update))

    @staticmethod
    def batched_step(stages: "Sequence[SupervisedStage]") -> BatchedRegression:
        """The stages' step as one batched model's. They can no longer step alone."""
        return BatchedRegression([stage.regression for stage in stages], [stage.examples for stage in stages])

    def state(self) -> dict[str, Tensor]:
        """The live tensors to be stored in a checkpoint."""
        return self.regression.state()

    def modules(self) -> dict[str, nn.Module]:
        """The trained network by file stem: the averaged weights."""
        return {self.name: self.regression.averaged}


def network_of(model: nn.Module) -> tuple[MLP, str]:
    """The network inside a model, and the prefix of its parameter names."""
    name, mlp = next((name, module) for name, module in model.named_modules() if isinstance(module, MLP))
    return mlp, f"{name}."


def concat_tables(tables: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Concatenate tables of rows; return the offset of each, (S, 1), too. A table shared by all is not copied."""
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
