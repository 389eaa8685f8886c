"""The fused reverse chain on the CPU: twins of `jacrec.engine.jacobians.chain` with its arguments and returns.

A tile of particles goes through all K steps before the next one starts, on as many threads as torch would take.
`DeterministicDynamics` are served too, as a chain of one step.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jacrec.engine.jacobians.chain import level_table
from jacrec.kernels.cpu.base import layout
from jacrec.kernels.cpu.base.host import entry, part
from jacrec.kernels.cpu.base.layout import LAYERS, PADDED, TAPE, WIDEST
from jacrec.kernels.cpu.base.team import ALONE
from jacrec.kernels.cpu.base.threads import run, threads_for, workspace
from jacrec.kernels.cpu.base.tiles import at, carray, fetch_add, integers, size_of
from jacrec.kernels.cpu.gradient.plan import DTYPES, Plan, describe_chain
from jacrec.kernels.cpu.gradient.transition import (
    ACTION_DIM,
    CHAIN,
    NOISES,
    STATE_DIM,
    STEPS,
    pull_transition,
    push_room,
    push_transition,
    record_transition,
)
from jacrec.models.dynamics import ChainDynamics, DeterministicDynamics
from jacrec.util.errors import expect_shape

__all__ = ["ChainTape", "chain_adjoint", "chain_forward", "chain_record", "level_table"]

PUSHED_ROWS = 32
"""rows, values and tangents together, that `chain_forward` takes through all layers at once"""
RECORDED_ROWS = 16

# a job: int64, counted up by its threads: the next tile to be taken, and the number of the next thread to come
NEXT, COMERS = range(2)
TILES, ROWS, TANGENTS, CHAIN_ROW, STEP_COEFFICIENTS, NET, NET_LENGTH, MEMORY, MEMORY_LENGTH, TAPES = range(2, 12)
STATE, ACTION, NOISE, DS, DA, NEXT_STATE, NEXT_TANGENTS, LAMBDA, V_S, V_A = range(12, 22)
JOB = 22


@part
def _described(like, job):
    chain = carray(integers(job[CHAIN_ROW]), (CHAIN,))
    steps = carray(at(like, job[STEP_COEFFICIENTS]), (3, chain[STEPS]))
    return chain, steps, carray(integers(job[NET]), (job[NET_LENGTH],))


@part
def push_chain(like, job_address):
    """`chain_forward` of a job's tiles, until none is left."""
    job = integers(job_address)
    chain, steps, net = _described(like, job)
    d, m, T, tiles, size = chain[STATE_DIM], chain[ACTION_DIM], job[TANGENTS], job[TILES], size_of(like)
    noise_row = chain[NOISES] * d
    memory = job[MEMORY] + fetch_add(job_address + 8 * COMERS) * job[MEMORY_LENGTH] * size
    while True:
        i = fetch_add(job_address)
        if i >= tiles:
            break
        first, last = job[ROWS] * i // tiles, job[ROWS] * (i + 1) // tiles
        push_transition(
            like,
            chain,
            steps,
            net,
            job[STATE] + first * d * size,
            job[ACTION] + first * m * size,
            job[NOISE] + first * noise_row * size,
            job[DS] + first * T * d * size,
            job[DA] + first * T * m * size,
            last - first,
            T,
            memory,
            job[NEXT_STATE] + first * d * size,
            job[NEXT_TANGENTS] + first * T * d * size,
        )


@part
def record_chain(like, job_address):
    """`chain_record` of a job's tiles, until none is left."""
    job = integers(job_address)
    chain, steps, net = _described(like, job)
    d, m, K, tiles, size = chain[STATE_DIM], chain[ACTION_DIM], chain[STEPS], job[TILES], size_of(like)
    noise_row = chain[NOISES] * d
    memory = job[MEMORY] + fetch_add(job_address + 8 * COMERS) * job[MEMORY_LENGTH] * size
    while True:
        i = fetch_add(job_address)
        if i >= tiles:
            break
        first, last = job[ROWS] * i // tiles, job[ROWS] * (i + 1) // tiles
        R = last - first
        x = memory
        constant = x + R * (d + m) * size
        u = constant + R * net[LAYERS + PADDED] * size
        record_transition(
            like,
            chain,
            steps,
            net,
            job[STATE] + first * d * size,
            job[ACTION] + first * m * size,
            job[NOISE] + first * noise_row * size,
            noise_row,
            R,
            job[TAPES] + first * K * net[TAPE] * size,
            K,
            K * 0,
            x,
            constant,
            u,
            u + R * d * size,
            job[NEXT_STATE] + first * d * size,
            ALONE,
        )


@part
def pull_chain(like, job_address):
    """`chain_adjoint` of a job's tiles, until none is left."""
    job = integers(job_address)
    chain, steps, net = _described(like, job)
    d, m, K, tiles, size = chain[STATE_DIM], chain[ACTION_DIM], chain[STEPS], job[TILES], size_of(like)
    memory = job[MEMORY] + fetch_add(job_address + 8 * COMERS) * job[MEMORY_LENGTH] * size
    while True:
        i = fetch_add(job_address)
        if i >= tiles:
            break
        first, last = job[ROWS] * i // tiles, job[ROWS] * (i + 1) // tiles
        R = last - first
        mu = memory
        y_bar = mu + R * d * size
        v = y_bar + R * d * size
        total = v + R * (d + m) * size
        pull_transition(
            like,
            chain,
            steps,
            net,
            R,
            job[TAPES] + first * K * net[TAPE] * size,
            K,
            K * 0,
            job[LAMBDA] + first * d * size,
            mu,
            y_bar,
            total,
            v,
            total + R * net[LAYERS + PADDED] * size,
            job[V_S] + first * d * size,
            job[V_A] + first * m * size,
            ALONE,
        )


class _Job:
    """A row of int64 on its way to a kernel, with what it points to."""

    def __init__(self, dynamics: ChainDynamics | DeterministicDynamics, table: Tensor | None):
        self.dtype = next(dynamics.parameters()).dtype
        self.plan = Plan(self.dtype)
        self.chain, self.steps, nets = describe_chain(self.plan, dynamics, table)
        self.net = nets[0]
        self.row = np.zeros(JOB, dtype=np.int64)
        self.row[CHAIN_ROW], self.row[STEP_COEFFICIENTS] = self.plan.array(self.chain), self.plan.array(self.steps)
        self.row[NET], self.row[NET_LENGTH] = self.plan.array(self.net), len(self.net)

    def point(self, **tensors: tuple[int, Tensor, tuple[int, ...]]) -> list[Tensor]:
        """Let entries of the row point to tensors of the shapes given; to be held until the job has run.

        Raises:
            ValueError: another shape, dtype or device.
        """
        held = []
        for name, (index, tensor, shape) in tensors.items():
            expect_shape(name, tensor, shape)
            if tensor.dtype != self.dtype or tensor.device.type != "cpu":
                raise ValueError(f"{name}: expected {self.dtype} on the CPU, got {tensor.dtype} on {tensor.device}")
            held.append(tensor.contiguous())
            self.row[index] = held[-1].data_ptr()
        return held

    def run(self, function, rows: int, tile: int, room: int, macs: float) -> None:
        """All rows in tiles of at most `tile` rows, each with `room` numbers of scratch and `macs` multiply–adds a row."""
        threads = threads_for(rows, macs)
        tiles = max(-(-rows // tile), min(threads, rows))
        self.row[NEXT] = self.row[COMERS] = 0
        self.row[TILES], self.row[ROWS] = tiles, rows
        room = -(-room // 16) * 16
        self.row[MEMORY], self.row[MEMORY_LENGTH] = workspace(threads * room, self.dtype).data_ptr(), room
        run(entry(function, DTYPES[self.dtype]), self.row, threads)


@torch.no_grad()
def chain_forward(
    dynamics: ChainDynamics | DeterministicDynamics,
    state: Tensor,
    action: Tensor,
    noise: Tensor,
    ds: Tensor,
    da: Tensor,
    table: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`jacrec.engine.jacobians.chain.chain_forward`: next state (B, d) and its tangents (B, T, d)."""
    B, T, d, m = *ds.shape[:2], dynamics.state_dim, dynamics.action_dim
    job = _Job(dynamics, table)
    next_state, tangents = (torch.empty(shape, dtype=job.dtype, device="cpu") for shape in ((B, d), (B, T, d)))
    held = job.point(
        state=(STATE, state, (B, d)),
        action=(ACTION, action, (B, m)),
        noise=(NOISE, noise, (B, *dynamics.noise_shape)),
        ds=(DS, ds, (B, T, d)),
        da=(DA, da, (B, T, m)),
        next_state=(NEXT_STATE, next_state, (B, d)),
        tangents=(NEXT_TANGENTS, tangents, (B, T, d)),
    )
    job.row[TANGENTS] = T
    tile = max(1, PUSHED_ROWS // (1 + T))
    macs = float((1 + T) * job.chain[STEPS] * _weights(job.net))
    job.run(push_chain, B, tile, int(push_room.py_func(job.chain, job.net, tile, T)), macs)
    del held
    return next_state, tangents


@dataclass
class ChainTape:
    """What `chain_adjoint` needs: the activations of all K calls, or with `recompute` only what the pass began from."""

    job: _Job
    inputs: list[Tensor]  # state, action, noise
    tape: Tensor | None

    def recorded(self) -> Tensor:
        """The activations; recorded now if they have not been kept."""
        return _record(self.job, self.inputs)[1] if self.tape is None else self.tape


@torch.no_grad()
def chain_record(
    dynamics: ChainDynamics | DeterministicDynamics,
    state: Tensor,
    action: Tensor,
    noise: Tensor,
    table: Tensor | None = None,
    *,
    recompute: bool = False,
) -> tuple[Tensor, ChainTape]:
    """`jacrec.engine.jacobians.chain.chain_record`: next state (B, d) and the tape; with `recompute` the pass is made again later."""
    job = _Job(dynamics, table)
    inputs = [state, action, noise]
    next_state, tape = _record(job, inputs)
    return next_state, ChainTape(job, inputs, None if recompute else tape)


@torch.no_grad()
def chain_adjoint(dynamics: ChainDynamics | DeterministicDynamics, tape: ChainTape, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """`jacrec.engine.jacobians.chain.chain_adjoint`: λ (B, d) -> F_sᵀ λ (B, d), F_aᵀ λ (B, m)."""
    job, kept, B, d, m = tape.job, tape.recorded(), tape.inputs[0].shape[0], dynamics.state_dim, dynamics.action_dim
    v_s, v_a = (torch.empty(B, n, dtype=job.dtype, device="cpu") for n in (d, m))
    held = job.point(
        tape=(TAPES, kept, tuple(kept.shape)),
        cotangent=(LAMBDA, cotangent, (B, d)),
        v_s=(V_S, v_s, (B, d)),
        v_a=(V_A, v_a, (B, m)),
    )
    room = RECORDED_ROWS * int(3 * d + m + job.net[LAYERS + PADDED] + 4 * job.net[WIDEST])
    job.run(pull_chain, B, RECORDED_ROWS, room, float(job.chain[STEPS] * _weights(job.net)))
    del held
    return v_s, v_a


def _record(job: _Job, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Next state (B, d) and the tape."""
    d, m, K, noises = (int(job.chain[i]) for i in (STATE_DIM, ACTION_DIM, STEPS, NOISES))
    B = inputs[0].shape[0]
    shapes = (B, d), (B, m), (B, noises, d)
    tape = torch.empty(B * K * int(job.net[TAPE]), dtype=job.dtype, device="cpu")
    next_state = torch.empty(B, d, dtype=job.dtype, device="cpu")
    named = zip(("state", "action", "noise"), (STATE, ACTION, NOISE), inputs, shapes, strict=True)
    held = job.point(
        **{name: (index, tensor, shape) for name, index, tensor, shape in named},
        tape=(TAPES, tape, tuple(tape.shape)),
        next_state=(NEXT_STATE, next_state, (B, d)),
    )
    room = RECORDED_ROWS * (3 * d + m + int(job.net[LAYERS + PADDED]))
    job.run(record_chain, B, RECORDED_ROWS, room, float(K * _weights(job.net)))
    del held
    return next_state, tape


def _weights(net: np.ndarray) -> int:
    """Multiply–adds of one row through the hidden layers."""
    widths = [int(net[layout.LAYERS + i * layout.LAYER + layout.WIDTH]) for i in range(net[layout.DEPTH])]
    return sum(a * b for a, b in zip(widths, [*widths[1:], int(net[layout.OUT])], strict=True))
