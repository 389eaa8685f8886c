"""ReBRAC's updates in compiled code: the twin of `jacrec.training.stages.rebrac`'s plain ones, for networks on a CPU."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jacrec.kernels.cpu.base.host import VECTOR_BYTES, entry
from jacrec.kernels.cpu.base.layout import DTYPES
from jacrec.kernels.cpu.base.threads import run_together
from jacrec.kernels.cpu.rebrac import job
from jacrec.kernels.cpu.rebrac.flat import offsets_of
from jacrec.kernels.cpu.rebrac.job import Rule
from jacrec.kernels.cpu.rebrac.update import AWAY, BLOCK, LOSS, Q_POLICY, SIZE, Q, rebrac_update
from jacrec.models.networks import MLP

__all__ = ["FusedReBRAC", "Rule", "Trained"]


class Trained(NamedTuple):
    """An actor or a stack of critics in training: flat vectors of one layout, which updates change in place."""

    mlp: MLP
    value: Tensor  # (P,), of which the network's parameters are views
    target: Tensor
    gradient: Tensor
    first_moment: Tensor
    second_moment: Tensor
    steps: Tensor  # (): Adam's count of steps


class FusedReBRAC:
    """`update(batch, noise, move_actor)` as `jacrec.training.stages.rebrac.ReBRAC.update`.

    ReLU networks without residual connections in float32 or float64; takes as many threads as torch.
    """

    def __init__(self, actor: Trained, critic: Trained, rule: Rule):
        self.actor, self.critic, self.bc, self.normalize_q = actor, critic, rule.actor_bc_coef, rule.normalize_q
        self.dtype = actor.value.dtype
        self.call = entry(rebrac_update, DTYPES[self.dtype]).ctypes
        self.rule = np.zeros(job.RULES)
        self.rule[: len(rule)] = rule
        self.counter = np.zeros(8, dtype=np.int64)  # a cache line of its own
        self.totals = np.zeros((0, job.TOTALS_KEPT))
        self.jobs = np.zeros((0, job.JOB), dtype=np.int64)
        self.kept: list[np.ndarray] = []

    def _reserve(self, B: int, threads: int) -> None:
        """Jobs and work space for batches of B rows."""
        mlps = (self.actor.mlp, self.critic.mlp)
        m, x, heads = mlps[0].out_dim, mlps[1].in_dim, self.critic.mlp.stack or 1
        lanes = VECTOR_BYTES // self.dtype.itemsize
        widest = max(m, *(width for mlp in mlps for width in mlp.hidden))
        W, block = -(-widest // lanes) * lanes, min(BLOCK, B)
        largest = max(layer.weight.numel() // (mlp.stack or 1) for mlp in mlps for layer in mlp.layers)
        self.kept = []

        def space(*shape: int, dtype: torch.dtype = self.dtype) -> np.ndarray:
            self.kept.append(torch.zeros(shape, dtype=dtype).numpy())  # torch's memory begins at whole vectors
            return self.kept[-1]

        def network(part: Trained) -> int:
            mlp, L, n = part.mlp, len(part.mlp.hidden), part.mlp.stack or 1
            widths = np.array([mlp.in_dim, *mlp.hidden, mlp.out_dim])
            offsets = np.ascontiguousarray(offsets_of(mlp, part.value))
            shapes = (n, L, B, W), (n, L, B, W), (n, L, B), (n, L, B), (n, threads, L + 1, 3, W)
            tape = [space(*shape).ctypes.data for shape in shapes]
            row = np.zeros(job.NETWORK, dtype=np.int64)
            row[:] = (
                L,
                n,
                bool(mlp.norms),
                mlp.tanh_output,
                part.value.numel(),
                *(t.data_ptr() for t in part[1:6]),
                widths.ctypes.data,
                offsets.ctypes.data,
                *tape,
            )
            self.kept += [widths, offsets, row]
            return row.ctypes.data

        self.totals = np.zeros((threads, job.TOTALS_KEPT))
        shared = {
            job.THREADS: threads,
            job.ROWS: B,
            job.SPACING: W,
            job.BLOCK: block,
            job.ACTOR: network(self.actor),
            job.CRITIC: network(self.critic),
            job.TRANSPOSED_LENGTH: largest,
        }
        arrays = {
            job.COUNTER: self.counter,
            job.RULE: self.rule,
            job.ACTION: space(B, m),
            job.Q: space(heads, B),
            job.PENALTY: space(B),
            job.ERROR: space(heads, B),
            job.STATE_ACTION: space(B, x),
            job.SLOPE: space(B, m),
            job.TOTALS: self.totals,
        }
        self.jobs = np.zeros((threads, job.JOB), dtype=np.int64)
        for slot, number in (shared | {slot: array.ctypes.data for slot, array in arrays.items()}).items():
            self.jobs[:, slot] = number
        for thread, row in enumerate(self.jobs):
            row[job.THREAD] = thread
            own = {
                job.WORKSPACE: space(2, block, W),
                job.WORKSPACE_MOMENTS: space(2, block),
                job.TRANSPOSED: space(largest),
                job.INDEX: space(block, dtype=torch.int64),
                job.INPUT_BAR: space(block, x),
            }
            for slot, array in own.items():
                row[slot] = array.ctypes.data

    def _check(self, batch: Tensor, noise: Tensor) -> None:
        columns, m = 2 * self.critic.mlp.in_dim + 2, self.actor.mlp.out_dim
        if not batch.is_contiguous():
            raise ValueError("batch: expected contiguous rows, which are overwritten, got a view; pass a copy")
        for name, tensor, shape in (("batch", batch, (len(batch), columns)), ("noise", noise, (len(batch), m))):
            if tensor.shape != shape or tensor.dtype != self.dtype:
                raise ValueError(f"{name}: expected {shape} of {self.dtype}, got {tuple(tensor.shape)} of {tensor.dtype}")

    def update(self, batch: Tensor, noise: Tensor, move_actor: bool) -> dict[str, Tensor]:
        """See `jacrec.training.stages.rebrac.ReBRAC.update`."""
        noise, threads, B = noise.contiguous(), torch.get_num_threads(), len(batch)
        self._check(batch, noise)
        if len(self.jobs) != threads or self.jobs[0, job.ROWS] != B:
            self._reserve(B, threads)
        for part in (self.actor, self.critic) if move_actor else (self.critic,):
            part.steps.add_(1)
        self.rule[job.MOVE :] = move_actor, self.actor.steps.item(), self.critic.steps.item()
        self.jobs[:, job.BATCH], self.jobs[:, job.NOISE] = batch.data_ptr(), noise.data_ptr()
        self.counter[0] = 0
        run_together(self.call, self.jobs)
        total = self.totals.sum(0) / B
        scalars = {"critic_loss": total[LOSS], "q": total[Q] / (self.critic.mlp.stack or 1)}
        if move_actor:
            scale = 1 / total[SIZE] if self.normalize_q else 1.0
            actor_loss = self.bc * total[AWAY] - scale * total[Q_POLICY]
            scalars |= {"actor_loss": actor_loss, "bc": total[AWAY], "q_policy": total[Q_POLICY]}
        values = torch.tensor(list(scalars.values()), dtype=self.dtype)
        return dict(zip(scalars, values.unbind(), strict=True))
