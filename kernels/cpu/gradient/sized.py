"""Jobs for certain sizes: how many threads share them, how large tiles and memory are."""

from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from jacrec.engine.problem import Problem
from jacrec.kernels.cpu.base.layout import DTYPES, Stack
from jacrec.kernels.cpu.base.mlp import turned_room
from jacrec.kernels.cpu.base.rows import WORD, address_of
from jacrec.kernels.cpu.base.shares import SPACING
from jacrec.kernels.cpu.base.threads import threads_for
from jacrec.kernels.cpu.gradient.copies import CopyJob
from jacrec.kernels.cpu.gradient.job import AT, COUNTERS, Constants, Networks, Sizes, Turned, job_length, memory_layout
from jacrec.kernels.cpu.gradient.plan_parts import PolicyPlan, WorldPlan
from jacrec.kernels.cpu.gradient.sensitivities import FORWARD, GRADIENT, JACOBIANS, PUSHED_ROWS, Forward
from jacrec.kernels.cpu.gradient.tiling import LENT
from jacrec.kernels.cpu.gradient.transition import push_room

TILE, LEAST_TILE = 64, 16
"""rows that pass through all layers together: enough to use every weight loaded often, few enough to stay in the caches"""
TILE_BYTES = 2 * 2**20
"""of the world model's tape, beyond which a tile has no more than `LEAST_TILE` rows"""
TAPE_BYTES = 64 * 2**20
"""a tile has fewer rows where its tape would be larger"""
LEAST_ROWS, LEAST_USES = 4, 200
"""particles, and particles times calls of a network, from which on each thread transposes its weights for itself"""
PAGE = 1024
"""elements to which a thread's memory is rounded: no two threads share a page"""


class Beside(NamedTuple):
    """Where in a job's row its own memory begins, behind what compiled code reads by name; words."""

    copies: int  # the plan's `copies.CopyJob`
    rates: int  # α and the largest gradient norm, float64
    accepted: int  # whether each policy's step was taken
    squares: int  # each part's ‖·‖², float64
    owners: int  # who owns each share, `SPACING` apart
    revoked: int
    results: int  # where each share's gradients are
    lent: int  # what each helper has written
    end: int


class SizedJob(NamedTuple):
    """A job without the addresses of a call."""

    row: np.ndarray
    beside: Beside
    dtype: torch.dtype
    factors: np.ndarray  # γ^j, the rows' weights, β γ^j, 1 and β, (5, H+1), which the row points to
    threads: int
    shares: int  # of the rows, each with its own gradients
    first: int  # where the first thread's memory begins, in bytes; the returns lie before it
    memory: int  # elements of memory in all
    room: int  # and for one thread
    length: int  # of a policy's vector of gradients
    gradients: int  # and how many such vectors there are: the policies', then those of other shares
    path: tuple[int, int]  # elements of the path's states and actions


class Job(NamedTuple):
    """A call's own row."""

    row: np.ndarray
    address: int
    sized: SizedJob
    """what it was copied from, which holds what it points to"""

    @classmethod
    def of(cls, row: np.ndarray, sized: SizedJob) -> "Job":
        """The job in a row."""
        return cls(row, address_of(row), sized)

    def copy(self) -> "Job":
        """The same in another row."""
        return Job.of(self.row.copy(), self.sized)

    def at(self, word: int) -> int:
        """The address of a word."""
        return self.address + word * WORD


def sized_job(
    own: PolicyPlan,
    world: WorldPlan,
    anchor: PolicyPlan | None,
    copies: np.ndarray,
    p: Problem,
    team: int,
    kind: int | None = None,
) -> SizedJob:
    """The job of a problem. anchor: π₀'s plan; copies: the plan's; team: threads that should share a single particle's layers.

    kind: what `sensitivities` computes forward in time; None: the adjoint form.
    """
    numbers, size = DTYPES[own.dtype], own.dtype.itemsize
    d, m, N, H, K = own.state_dim, own.action_dim, p.N, p.H, world.chain.K
    # at the real state itself all particles agree
    M = p.M if H or kind not in (None, GRADIENT) else 1
    tangents = [] if kind is None else pushed_tangents(kind, d, m, H)
    rows = sum(1 + T for T in tangents) if kind is not None else 2 * H
    beside = H * world.reward_macs + (H + 1) * (own.macs + (anchor.macs if anchor else 0))
    work = 2.0 * beside + float(rows * K * world.dynamics_macs)
    threads = threads_for(N * M, work)
    team = min(team, torch.get_num_threads()) if N * M == 1 and world.shares_layers else 1
    threads = max(threads, team)
    base = anchor.rows if anchor else None
    nets = Networks(
        own.rows.network,
        world.reward and world.reward.network,
        world.critics and world.critics.network,
        world.dynamics.network,
        base.network if base else None,
    )
    tape = max(1, H * K * nets.dynamics.tape * size) if kind is None else 1
    most = LEAST_TILE if kind is not None else max(LEAST_TILE, TILE_BYTES // tape)
    widest = max(1, min(TILE, most, N * M, TAPE_BYTES // tape))
    tile = min(widest, -(-N * M // threads))
    if kind is not None:
        widest = tile  # which rows the dynamics take at once depends on the tile, and rounding on them
    acts = H if p.world.anchor is not None and p.world.anchor.terminal else H + 1
    sizes = Sizes(1 if team > 1 else threads, team, d, m, H, M, N * M, p.batched, tile, widest, acts)
    first, critics = world.dynamics.layers[0].padded, world.critics.stack.count if world.critics else 0
    chain = world.chain if kind is None else world.chain._replace(K=0)  # nothing of it is kept
    scratch, tapes, elements = memory_layout(sizes, chain, nets, critics, first, size)
    forward = ()
    if kind is not None:
        forward, elements = forward_layout(kind, sizes, nets, first, tangents, elements, size)
    turned = Turned(*[0] * len(Turned._fields))
    if kind is None:
        turned, elements = turned_layout(own, world, anchor, sizes, K, elements, size)
    room = -(-elements // PAGE) * PAGE
    discounts = p.world.discount ** np.arange(H + 1)
    beta = p.world.anchor.weight if p.world.anchor else 0.0
    rows_share = M if p.batched else N * M
    factors = np.stack([discounts, discounts / rows_share, beta * discounts, *np.ones((2, H + 1))]).astype(numbers)
    factors[4] *= beta
    first_factor, row_bytes = factors.ctypes.data, factors.strides[0]
    # bare derivatives: γ is 1
    which = (3, 3, 4) if kind == JACOBIANS else (0, 1, 2)
    to_discounts, to_weights, to_penalties = (first_factor + i * row_bytes for i in which)
    constants = Constants(to_discounts, to_weights, own.copies.ctypes.data, to_penalties)
    beside = beside_layout(job_length(team) + len(forward), sizes, threads)
    row = np.zeros(beside.end, dtype=np.int64)
    stacks = [rows.stack if rows else Stack(0, 0, 0) for rows in (own.rows, world.reward, world.critics, base, world.dynamics)]
    fixed = (*sizes, *(x for stack in stacks for x in stack), *world.chain, *world.scales, *constants)
    row[COUNTERS : AT.call] = [int(x) for x in fixed]
    row[AT.scratch : AT.flags] = (*scratch, *tapes, *turned)
    if kind is not None:
        row[FORWARD : beside.copies] = forward._replace(discounts=first_factor)  # pyright: ignore
    row[beside.copies : beside.rates] = copies
    returns = -(-N * M // PAGE) * PAGE
    gradients, path = (N if p.batched else 1) + sizes.shares - 1, ((H + 1) * N * M * d, (H + 1) * N * M * m)
    length, memory = own.rows.network.gradient, returns + team * room
    return SizedJob(
        row, beside, own.dtype, factors, threads, sizes.shares, returns * size, memory, room, length, gradients, path
    )


def beside_layout(begin: int, sizes: Sizes, threads: int) -> Beside:
    """What lies behind the first words of a job's row."""
    shares, policies = sizes.shares, sizes.rows // sizes.M if sizes.batched else 1
    counts = len(CopyJob._fields), 2, policies, threads + SPACING, shares * SPACING, SPACING, shares, threads * LENT
    return Beside(*accumulate(counts, initial=begin))


def turned_layout(
    own: PolicyPlan, world: WorldPlan, anchor: PolicyPlan | None, sizes: Sizes, K: int, begin: int, itemsize: int
) -> tuple[Turned, int]:
    """Which weights each thread transposes, from an element of its memory on, and where they end.

    What is computed by them depends on M, not on threads or other states: they may not change the bits.
    """
    M, H, offsets = sizes.M, sizes.H, []
    used: dict[str, float] = dict(
        policies=0 if sizes.batched else H + 1, reward=H, critics=1, anchor=H + 1
    )  # how often by a row
    used["dynamics"] = H * K / max(1, world.chain.members)
    stacks = dict(policies=own.rows, reward=world.reward, critics=world.critics, anchor=anchor and anchor.rows)
    for name, rows in (stacks | {"dynamics": world.dynamics}).items():
        worth = rows is not None and M >= LEAST_ROWS and M * used[name] >= LEAST_USES
        offsets.append(begin * itemsize if worth else 0)
        if worth and rows is not None:
            count = turned_room(rows.stack, [layer.padded for layer in rows.layers], itemsize)
            begin += -(-count // 16) * 16
    return Turned(*offsets), begin


def pushed_tangents(kind: int, d: int, m: int, H: int) -> list[int]:
    """The tangents of each row that go through the dynamics at every step."""
    if kind == GRADIENT:
        return [min((j + 1) * m, d + m) for j in range(H)]
    return [d + m if kind == JACOBIANS else d] * H


def forward_layout(
    kind: int, sizes: Sizes, nets: Networks, first: int, tangents: list[int], begin: int, itemsize: int
) -> tuple[Forward, int]:
    """The buffers of the forward form, which begin at an element of a thread's memory, and where they end."""
    d, m, H, R, widest = sizes.d, sizes.m, sizes.H, sizes.widest, nets.dynamics.widest
    T = max(H * m, d + m)
    units = d + m
    counts = dict(ds=T * d, da=T * m, C=T * d, unit_s=units * d, unit_a=units * m, columns=units * d, Pi=m * d, bars=m * m)
    counts |= {"weights": (H + 1) * m, "pull": 3 * m * nets.policy.widest}
    room = max(push_room(d, m, first, widest, min(R, max(1, PUSHED_ROWS // (1 + T))), T) for T in {0, *tangents})
    lengths = [*(count * R for count in counts.values()), room]
    *starts, end = accumulate((-(-length // 16) * 16 for length in lengths), initial=begin)
    offsets = dict(zip((*counts, "push"), (start * itemsize for start in starts), strict=True))
    return Forward(kind=kind, **offsets), end
