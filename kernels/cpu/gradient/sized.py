"""Jobs for certain sizes: how many threads share them, how large tiles and memory are."""

from typing import NamedTuple

import numpy as np
import torch

from jacrec.engine.problem import Problem
from jacrec.kernels.cpu.base.layout import DTYPES, Stack
from jacrec.kernels.cpu.base.threads import threads_for
from jacrec.kernels.cpu.gradient.job import AT, COUNTERS, Constants, Networks, Sizes, job_length, memory_layout
from jacrec.kernels.cpu.gradient.plan_parts import PolicyPlan, WorldPlan

TILE = 16
"""rows that pass through all layers together: enough to use every weight loaded often, few enough to stay in the caches"""
TAPE_BYTES = 64 * 2**20
"""a tile has fewer rows where its tape would be larger"""
PAGE = 1024
"""elements to which a thread's memory is rounded: no two threads share a page"""


class SizedJob(NamedTuple):
    """A job without the addresses of a call."""

    row: np.ndarray
    factors: np.ndarray  # γ^j, the rows' weights and β γ^j, (3, H+1), which the row points to
    threads: int
    shares: int  # of the rows, each with its own gradients
    first: int  # where the first thread's memory begins, in bytes; the returns lie before it
    memory: int  # elements of memory in all
    room: int  # and for one thread
    length: int  # of a policy's vector of gradients
    path: tuple[int, int]  # elements of the path's states and actions


def sized_job(own: PolicyPlan, world: WorldPlan, anchor: PolicyPlan | None, p: Problem, team: int) -> SizedJob:
    """The job of a problem. anchor: π₀'s plan; team: threads that should share a single particle's layers."""
    numbers, size = DTYPES[own.dtype], own.dtype.itemsize
    d, m, N, H, K = own.state_dim, own.action_dim, p.N, p.H, world.chain.K
    M = p.M if H else 1  # at the real state itself all particles agree
    work = 2.0 * (H * (world.reward_macs + K * world.dynamics_macs) + (H + 1) * (own.macs + (anchor.macs if anchor else 0)))
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
    tape = max(1, H * K * nets.dynamics.tape * size)
    widest = max(1, min(TILE, N * M, TAPE_BYTES // tape))
    tile = min(widest, -(-N * M // threads))
    sizes = Sizes(1 if team > 1 else threads, team, d, m, H, M, N * M, p.batched, tile, widest)
    first, critics = world.dynamics.layers[0].padded, world.critics.stack.count if world.critics else 0
    scratch, tapes, elements = memory_layout(sizes, world.chain, nets, critics, first, size)
    room = -(-elements // PAGE) * PAGE
    discounts = p.world.discount ** np.arange(H + 1)
    beta = p.world.anchor.weight if p.world.anchor else 0.0
    factors = np.stack([discounts, discounts / (M if p.batched else N * M), beta * discounts]).astype(numbers)
    first_factor, row_bytes = factors.ctypes.data, factors.strides[0]
    constants = Constants(first_factor, first_factor + row_bytes, own.copies.ctypes.data, first_factor + 2 * row_bytes)
    row = np.zeros(job_length(team), dtype=np.int64)
    stacks = [rows.stack if rows else Stack(0, 0, 0) for rows in (own.rows, world.reward, world.critics, base, world.dynamics)]
    fixed = (*sizes, *(x for stack in stacks for x in stack), *world.chain, *world.scales, *constants)
    row[COUNTERS : AT.call] = [int(x) for x in fixed]
    row[AT.scratch : AT.flags] = (*scratch, *tapes)
    returns = -(-N * M // PAGE) * PAGE
    memory, path = returns + team * room, ((H + 1) * N * M * d, (H + 1) * N * M * m)
    return SizedJob(row, factors, threads, sizes.shares, returns * size, memory, room, own.rows.network.gradient, path)
