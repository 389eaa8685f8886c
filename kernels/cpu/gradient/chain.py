"""The fused reverse chain on the CPU: twins of `jacrec.engine.jacobians.chain` with its arguments and returns.

A tile of particles goes through all K steps before the next one starts, on as many threads as torch would use.
`DeterministicDynamics` are served too, as a chain of one step.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jacrec.engine.jacobians.chain import level_table
from jacrec.kernels.cpu.base.host import entry
from jacrec.kernels.cpu.base.layout import DTYPES
from jacrec.kernels.cpu.base.threads import run, threads_for, workspace
from jacrec.kernels.cpu.gradient.addresses import Addresses, describe_dynamics
from jacrec.kernels.cpu.gradient.chain_passes import (
    CHAIN,
    JOB,
    STACK,
    WORK,
    Work,
    pull_chain,
    push_chain,
    record_chain,
)
from jacrec.kernels.cpu.gradient.transition import push_room
from jacrec.kernels.cpu.gradient.unsupported import dynamics_reason
from jacrec.models.dynamics import ChainDynamics, DeterministicDynamics
from jacrec.util.errors import expect_shape

__all__ = ["ChainTape", "chain_adjoint", "chain_forward", "chain_record", "level_table"]

PUSHED_ROWS = 32
"""rows, values and tangents together, that `chain_forward` takes through all layers at once"""
RECORDED_ROWS = 16

Chained = ChainDynamics | DeterministicDynamics


class _Job:
    """A row of int64 for the passes, and what it points to.

    Raises:
        ValueError: the kernels cannot serve these dynamics.
    """

    def __init__(self, dynamics: Chained, table: Tensor | None, checked: bool):
        reason = None if checked else dynamics_reason(dynamics, dynamics.out_std)
        if reason is not None:
            raise ValueError(f"{reason}; or use the plain twin, jacrec.engine.jacobians.chain")
        self.dtype = dynamics.out_std.dtype
        self.addresses = Addresses(self.dtype)
        self.chain, self.nets = describe_dynamics(self.addresses, dynamics, table)
        self.net, self.first = self.nets.network, self.nets.layers[0].padded
        widths = [layer.width for layer in self.nets.layers]
        self.weights = sum(a * b for a, b in zip(widths, [*widths[1:], self.net.outputs], strict=True))
        """multiply–adds of one row through the network"""

    def pointers(self, **tensors: tuple[Tensor, tuple[int, ...]]) -> tuple[dict[str, int], list[Tensor]]:
        """Addresses of tensors of the shapes given, as fields of `Work`; and the tensors, to be held until the job has run.

        Raises:
            ValueError: another shape, dtype or device.
        """
        held = []
        for name, (tensor, shape) in tensors.items():
            expect_shape(name, tensor, shape)
            if tensor.dtype != self.dtype or tensor.device.type != "cpu":
                raise ValueError(f"{name}: expected {self.dtype} on the CPU, got {tensor.dtype} on {tensor.device}")
            held.append(tensor.contiguous())
        return {name: tensor.data_ptr() for name, tensor in zip(tensors, held, strict=True)}, held

    def run(self, function, rows: int, tile: int, room: int, macs: float, **fields: int) -> None:
        """All rows in tiles of at most `tile` rows, each with `room` numbers of scratch and `macs` multiply–adds a row."""
        threads = threads_for(rows, macs)
        tiles = max(-(-rows // tile), min(threads, rows))
        room = -(-room // 16) * 16
        memory = workspace(threads * room, self.dtype).data_ptr()
        row = np.zeros(JOB, dtype=np.int64)
        row[WORK:STACK] = Work(tiles=tiles, rows=rows, memory=memory, memory_length=room, **fields)
        row[STACK:CHAIN], row[CHAIN:] = self.nets.stack, self.chain  # pyright: ignore
        run(entry(function, DTYPES[self.dtype]), row, threads)


@torch.no_grad()
def chain_forward(
    dynamics: Chained,
    state: Tensor,
    action: Tensor,
    noise: Tensor,
    ds: Tensor,
    da: Tensor,
    table: Tensor | None = None,
    *,
    checked: bool = False,
) -> tuple[Tensor, Tensor]:
    """`jacrec.engine.jacobians.chain.chain_forward`: next state (B, d) and its tangents (B, T, d).

    checked: whether the kernels are known to serve the dynamics.
    """
    B, T, d, m = *ds.shape[:2], dynamics.state_dim, dynamics.action_dim
    job = _Job(dynamics, table, checked)
    next_state, tangents = (torch.empty(shape, dtype=job.dtype, device="cpu") for shape in ((B, d), (B, T, d)))
    pointers, held = job.pointers(
        state=(state, (B, d)),
        action=(action, (B, m)),
        noise=(noise, (B, *dynamics.noise_shape)),
        ds=(ds, (B, T, d)),
        da=(da, (B, T, m)),
        next_state=(next_state, (B, d)),
        next_tangents=(tangents, (B, T, d)),
    )
    tile = max(1, PUSHED_ROWS // (1 + T))
    macs = float((1 + T) * job.chain.K * job.weights)
    job.run(push_chain, B, tile, push_room(d, m, job.first, job.net.widest, tile, T), macs, T=T, **pointers)
    del held
    return next_state, tangents


@dataclass
class ChainTape:
    """What `chain_adjoint` needs: the activations of all K calls, or with `recompute` only the inputs of the pass."""

    job: _Job
    inputs: list[Tensor]  # state, action, noise
    tape: Tensor | None

    def recorded(self) -> Tensor:
        """The activations; recorded now if they were not kept."""
        return _record(self.job, self.inputs)[1] if self.tape is None else self.tape


@torch.no_grad()
def chain_record(
    dynamics: Chained,
    state: Tensor,
    action: Tensor,
    noise: Tensor,
    table: Tensor | None = None,
    *,
    recompute: bool = False,
) -> tuple[Tensor, ChainTape]:
    """`jacrec.engine.jacobians.chain.chain_record`: next state (B, d) and the tape; with `recompute` the pass is repeated later."""
    job = _Job(dynamics, table, checked=False)
    inputs = [state, action, noise]
    next_state, tape = _record(job, inputs)
    return next_state, ChainTape(job, inputs, None if recompute else tape)


@torch.no_grad()
def chain_adjoint(dynamics: Chained, tape: ChainTape, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """`jacrec.engine.jacobians.chain.chain_adjoint`: λ (B, d) -> F_sᵀ λ (B, d), F_aᵀ λ (B, m)."""
    job, kept, B, d, m = tape.job, tape.recorded(), tape.inputs[0].shape[0], dynamics.state_dim, dynamics.action_dim
    v_s, v_a = (torch.empty(B, n, dtype=job.dtype, device="cpu") for n in (d, m))
    expect_shape("cotangent", cotangent, (B, d))
    pointers, held = job.pointers(
        tapes=(kept, tuple(kept.shape)), lam=(cotangent, (B, d)), v_s=(v_s, (B, d)), v_a=(v_a, (B, m))
    )
    room = RECORDED_ROWS * (3 * d + m + job.first + 4 * job.net.widest)
    job.run(pull_chain, B, RECORDED_ROWS, room, float(job.chain.K * job.weights), **pointers)
    del held
    return v_s, v_a


def _record(job: _Job, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Next state (B, d) and the tape."""
    d, m, K, noises = job.chain.d, job.chain.m, job.chain.K, job.chain.noises
    state, action, noise = inputs
    B = state.shape[0]
    tape = torch.empty(B * K * job.net.tape, dtype=job.dtype, device="cpu")
    next_state = torch.empty(B, d, dtype=job.dtype, device="cpu")
    pointers, held = job.pointers(
        state=(state, (B, d)),
        action=(action, (B, m)),
        noise=(noise, (B, noises, d)),
        tapes=(tape, tuple(tape.shape)),
        next_state=(next_state, (B, d)),
    )
    room = RECORDED_ROWS * (3 * d + m + job.first)
    job.run(record_chain, B, RECORDED_ROWS, room, float(K * job.weights), **pointers)
    del held
    return next_state, tape
