"""Regression steps in compiled code: the twin of `jacrec.training.stages.supervised.MLPTrainer`, for a network on a CPU."""

import math

import numpy as np
import torch
from torch import Tensor

from jacrec.kernels.cpu.base.host import VECTOR_BYTES, entry
from jacrec.kernels.cpu.base.layout import ACTIVATION_CODES, DTYPES
from jacrec.kernels.cpu.base.rows import row_of
from jacrec.kernels.cpu.base.threads import run_together, threads_for
from jacrec.kernels.cpu.rebrac.fused import Trained
from jacrec.kernels.cpu.regression.gather import GIVEN, NOISED, ROWS, Source
from jacrec.kernels.cpu.regression.job import AVERAGING, GRADIENT_ROWS, LR, MAX_NORM, PANEL, STEPS, STRIP, Job, Layer
from jacrec.kernels.cpu.regression.update import regression_step
from jacrec.models.networks import MLP, LayerNorm

BLOCK = 4 * STRIP
"""rows at a time: so many that reading the weights takes no time beside the products"""

SMALL = 64 * 4096
"""bytes of a weight that is read as it lies: the processor keeps so many pages' addresses at hand"""


class FusedRegression:
    """`step(x, goal, lr, averaging)`: one Adam step on mean (net(x) − goal)², and one of the averaged weights.

    For one network without tanh output, in float32 or float64; takes as many threads as torch. The result does not depend on
    their number. The gradient is left as it was before clipping.

    Args:
        trained: the network and its vectors; the target is the averaged weights, or the weights themselves for none.
        max_grad_norm: bound on the gradient's norm, or None.
    """

    def __init__(self, trained: Trained, max_grad_norm: float | None):
        self.trained, self.dtype = trained, trained.value.dtype
        self.call = entry(regression_step, DTYPES[self.dtype]).ctypes
        self.rule, self.eps = np.zeros(4), np.array([LayerNorm.eps])
        self.rule[MAX_NORM] = math.inf if max_grad_norm is None else max_grad_norm
        self.counter = np.zeros(8, dtype=np.int64)  # a cache line of its own
        self.losses, self.jobs = np.zeros(0), np.zeros((0, len(Job._fields)), dtype=np.int64)
        self.rows, self.kept, self.tables, self.own, self.address = 0, [], [], (0, 0), 0
        self.source = row_of(Source())
        self.steps = trained.steps.numpy()  # the same memory
        self.work = 3.0 * sum(layer.weight.numel() for layer in trained.mlp.layers)

    def _space(self, *shape: int, dtype: torch.dtype | None = None) -> int:
        """The address of zeros that live as long as the jobs."""
        self.kept.append(torch.zeros(shape, dtype=dtype or self.dtype))  # torch's memory begins at whole vectors
        return self.kept[-1].data_ptr()

    def _layer(self, l: int, B: int) -> Layer:
        """Layer l for batches of B rows."""
        t = self.trained
        mlp: MLP = t.mlp
        last, affine = l == len(mlp.hidden), mlp.layers[l]
        outputs, inputs = affine.weight.shape
        padded, stride = _spacing(outputs, self.dtype)
        norm = bool(mlp.norms) and not last
        parameters = [affine.weight, affine.bias, *((mlp.norms[l].weight, mlp.norms[l].bias) if norm else ())]
        addresses = [p.data_ptr() for p in parameters] + [0] * (4 - len(parameters))
        offset = t.gradient.data_ptr() - t.value.data_ptr()
        skip = not last and mlp.skips(l)
        out = 0 if last else self._space(B, stride)
        in_place = mlp.activation == "relu" and not norm and not skip  # the gate is the output
        return Layer(
            inputs,
            outputs,
            padded,
            stride,
            skip,
            *addresses,
            *(address + offset if address else 0 for address in addresses),
            turned=self._space(inputs * _panels(outputs, self.dtype)),
            panels=self._space(outputs * _panels(inputs, self.dtype)) if l and affine.weight.nbytes > SMALL else 0,
            gate=out if in_place or last else self._space(B, stride),
            out=out,
            hat=self._space(B, stride) if norm else 0,
            inv_std=self._space(B) if norm else 0,
            bar=self._space(B, stride),
            sums=self._space(-(-B // STRIP), 3, padded),
            squares=self._space(outputs, dtype=torch.float64),
        )

    def _reserve(self, B: int, threads: int) -> None:
        """Jobs and memory for batches of B rows."""
        self.rows, self.kept, t = B, [], self.trained
        mlp: MLP = t.mlp
        self.losses = np.zeros(-(-B // STRIP))
        layers = np.concatenate([row_of(self._layer(l, B)) for l in range(len(mlp.layers))])
        self.kept.append(layers)
        shared = Job(
            thread=0,
            threads=threads,
            counter=self.counter.ctypes.data,
            rows=B,
            block=BLOCK,
            depth=len(mlp.hidden),
            layers=layers.ctypes.data,
            activation=ACTIVATION_CODES[mlp.activation],
            norm=bool(mlp.norms),
            eps=self.eps.ctypes.data,
            source=self.source.ctypes.data,
            x=0,
            goal=0,
            losses=self.losses.ctypes.data,
            rule=self.rule.ctypes.data,
            length=t.value.numel(),
            value=t.value.data_ptr(),
            gradient=t.gradient.data_ptr(),
            first_moment=t.first_moment.data_ptr(),
            second_moment=t.second_moment.data_ptr(),
            averaged=0 if t.target is t.value else t.target.data_ptr(),
            kept=0,
            bars=0,
        )
        widest = _spacing(max(*mlp.hidden, mlp.out_dim), self.dtype)[1]
        own = [{"kept": self._space(BLOCK, widest), "bars": self._space(widest, GRADIENT_ROWS)} for _ in range(threads)]
        jobs = [shared._replace(thread=thread, **spaces) for thread, spaces in enumerate(own)]
        self.jobs = np.stack([row_of(job) for job in jobs])
        self.address, self.own = self.jobs.ctypes.data, (self._space(B, mlp.in_dim), self._space(B, mlp.out_dim))

    @property
    def gathers(self) -> bool:
        """Whether `step_on` has examples to gather its batches from."""
        return bool(self.source[0] != GIVEN)

    def gather_rows(self, rows: Tensor, split: int) -> None:
        """Let `step_on` gather its batches from rows [x, goal] (n, ·), of which `split` columns are x."""
        self._gather(ROWS, rows, split)

    def gather_noised(
        self, rows: Tensor, split: int, signal: Tensor, corruption: Tensor, embedding: Tensor, *, of_noise: bool
    ) -> None:
        """Let `step_on` noise its batches as `jacrec.training.stages.examples.NoisedExamples` does, whose fields these are."""
        addresses = {"signal": signal, "corruption": corruption, "embedding": embedding}
        self._gather(NOISED, rows, split, **addresses)
        source = Source(*self.source)
        self.source[:] = row_of(source._replace(features=embedding.shape[1], of_noise=of_noise))

    def _gather(self, kind: int, rows: Tensor, split: int, **tables: Tensor) -> None:
        given = [t.to(self.dtype).contiguous() for t in (rows, *tables.values())]
        self.tables = given  # copies, if they are any, live as long as this
        addresses = dict(zip(tables, (t.data_ptr() for t in given[1:]), strict=True))
        self.source[:] = row_of(Source(kind, given[0].data_ptr(), rows.shape[1], split, **addresses))

    def step_on(self, lr: float, averaging: float, index: Tensor, *random: Tensor) -> Tensor:
        """Perform a step on the examples of an index (B,) and their further random tensors; return the loss before it, ()."""
        for tensor, dtype in zip((index, *random), (torch.int64, torch.int64, self.dtype), strict=False):
            if tensor.dtype != dtype or not tensor.is_contiguous():
                raise ValueError(
                    f"random tensors: expected contiguous ones of {dtype}, got {tensor.dtype}, strides {tensor.stride()}"
                )
        jobs = self._jobs(len(index))
        self.source[INDEX : INDEX + 1 + len(random)] = [t.data_ptr() for t in (index, *random)]
        jobs[:, X], jobs[:, GOAL] = self.own
        return self._run(jobs, lr, averaging)

    def step(self, x: Tensor, goal: Tensor, lr: float, averaging: float) -> Tensor:
        """Perform a step on x (B, in) and goal (B, out); return the loss before it, ()."""
        B, mlp = len(x), self.trained.mlp
        x, goal = x.contiguous(), goal.contiguous()
        for name, tensor, shape in (("x", x, (B, mlp.in_dim)), ("goal", goal, (B, mlp.out_dim))):
            if tensor.shape != shape or tensor.dtype != self.dtype:
                raise ValueError(f"{name}: expected {shape} of {self.dtype}, got {tuple(tensor.shape)} of {tensor.dtype}")
        jobs, kind = self._jobs(B), self.source[0]
        jobs[:, X], jobs[:, GOAL] = x.data_ptr(), goal.data_ptr()
        self.source[0] = GIVEN
        try:
            return self._run(jobs, lr, averaging)
        finally:
            self.source[0] = kind

    def _jobs(self, B: int) -> np.ndarray:
        """The threads' jobs for B rows."""
        threads = min(threads_for(B, self.work), -(-B // STRIP))
        if self.rows != B or len(self.jobs) != threads:
            self._reserve(B, threads)
        return self.jobs

    def _run(self, jobs: np.ndarray, lr: float, averaging: float) -> Tensor:
        # as few of torch's operations as possible: each one's code has left the caches since the last step
        self.steps += 1
        self.rule[LR], self.rule[STEPS], self.rule[AVERAGING] = lr, self.steps, averaging
        self.counter[0] = 0
        if len(jobs) == 1:
            self.call(self.address)
        else:
            run_together(self.call, jobs)
        loss = self.losses.sum() / (self.rows * self.trained.mlp.out_dim)
        return torch.from_numpy(np.full((), loss, DTYPES[self.dtype]))


X, GOAL, INDEX = Job._fields.index("x"), Job._fields.index("goal"), Source._fields.index("index")


def _spacing(width: int, dtype: torch.dtype) -> tuple[int, int]:
    """The width in whole vectors, and the elements between rows: an odd number of vectors, as powers of two share few cache sets."""
    lanes = VECTOR_BYTES // dtype.itemsize
    vectors = -(-width // lanes)
    return vectors * lanes, (vectors + (vectors % 2 == 0)) * lanes


def _panels(columns: int, dtype: torch.dtype) -> int:
    """The columns in whole panels."""
    wide = PANEL * VECTOR_BYTES // dtype.itemsize
    return -(-columns // wide) * wide
