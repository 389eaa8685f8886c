"""The reverse chain on tiles of particles in compiled code: what `chain` calls."""

from typing import NamedTuple

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.layout import Stack, layer_of, network_of
from jacrec.kernels.cpu.base.rows import WORD, reader
from jacrec.kernels.cpu.base.team import ALONE
from jacrec.kernels.cpu.base.tiles import fetch_add, size_of
from jacrec.kernels.cpu.gradient.transition import Chain, pull_transition, push_transition, record_transition

NEXT_TILE, NEXT_THREAD = range(2)
"""counters at the head of a job, which its threads increment"""
COUNTERS = 2


class Work(NamedTuple):
    """Sizes, and addresses of arguments and results; each form uses some of them."""

    tiles: int = 0
    rows: int = 0
    T: int = 0
    memory: int = 0
    memory_length: int = 0  # elements for each thread
    tapes: int = 0
    state: int = 0
    action: int = 0
    noise: int = 0
    ds: int = 0
    da: int = 0
    next_state: int = 0
    next_tangents: int = 0
    lam: int = 0
    v_s: int = 0
    v_a: int = 0


WORK = COUNTERS
STACK = WORK + len(Work._fields)
CHAIN = STACK + len(Stack._fields)
JOB = CHAIN + len(Chain._fields)
_read_work, _read_stack, _read_chain = reader(Work), reader(Stack), reader(Chain)


@part
def _sections(job):
    """Work, chain and network of a job."""
    return (
        _read_work(job + WORK * WORD),
        _read_chain(job + CHAIN * WORD),
        network_of(_read_stack(job + STACK * WORD), 0),
    )


@part
def push_chain(like, job):
    """`chain_forward` of a job's tiles, until none is left."""
    work, chain, net = _sections(job)
    d, m, T, size = chain.d, chain.m, work.T, size_of(like)
    noise_row = chain.noises * d
    memory = work.memory + fetch_add(job + NEXT_THREAD * WORD) * work.memory_length * size
    while True:
        i = fetch_add(job + NEXT_TILE * WORD)
        if i >= work.tiles:
            break
        first, last = work.rows * i // work.tiles, work.rows * (i + 1) // work.tiles
        push_transition(
            like,
            chain,
            net,
            work.state + first * d * size,
            work.action + first * m * size,
            work.noise + first * noise_row * size,
            noise_row,
            work.ds + first * T * d * size,
            work.da + first * T * m * size,
            last - first,
            T,
            memory,
            work.next_state + first * d * size,
            work.next_tangents + first * T * d * size,
        )


@part
def record_chain(like, job):
    """`chain_record` of a job's tiles, until none is left."""
    work, chain, net = _sections(job)
    d, m, K, size = chain.d, chain.m, chain.K, size_of(like)
    noise_row = chain.noises * d
    memory = work.memory + fetch_add(job + NEXT_THREAD * WORD) * work.memory_length * size
    while True:
        i = fetch_add(job + NEXT_TILE * WORD)
        if i >= work.tiles:
            break
        first, last = work.rows * i // work.tiles, work.rows * (i + 1) // work.tiles
        R = last - first
        x = memory
        constant = x + R * (d + m) * size
        u = constant + R * layer_of(net, 0).padded * size
        record_transition(
            like,
            chain,
            net,
            work.state + first * d * size,
            work.action + first * m * size,
            work.noise + first * noise_row * size,
            noise_row,
            R,
            work.tapes + first * K * net.tape * size,
            K,
            0,
            x,
            constant,
            u,
            u + R * d * size,
            work.next_state + first * d * size,
            ALONE,
        )


@part
def pull_chain(like, job):
    """`chain_adjoint` of a job's tiles, until none is left."""
    work, chain, net = _sections(job)
    d, m, K, size = chain.d, chain.m, chain.K, size_of(like)
    memory = work.memory + fetch_add(job + NEXT_THREAD * WORD) * work.memory_length * size
    while True:
        i = fetch_add(job + NEXT_TILE * WORD)
        if i >= work.tiles:
            break
        first, last = work.rows * i // work.tiles, work.rows * (i + 1) // work.tiles
        R = last - first
        mu = memory
        y_bar = mu + R * d * size
        v = y_bar + R * d * size
        total = v + R * (d + m) * size
        pull_transition(
            like,
            chain,
            net,
            R,
            work.tapes + first * K * net.tape * size,
            K,
            0,
            work.lam + first * d * size,
            mu,
            y_bar,
            total,
            v,
            total + R * layer_of(net, 0).padded * size,
            work.v_s + first * d * size,
            work.v_a + first * m * size,
            ALONE,
        )
