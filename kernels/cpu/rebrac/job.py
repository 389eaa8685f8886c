"""The job of a ReBRAC update: rows of int64 that Python writes, and the NamedTuples of arrays that compiled code makes of them.

Addresses are bytes, sizes count elements. W is the number of elements between the rows of tapes and workspaces.
"""

from typing import Any, NamedTuple

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.tiles import at, carray, integers
from jacrec.kernels.cpu.rebrac.flat import Net, OptimiserState, share
from jacrec.kernels.cpu.rebrac.passes import Tape, Workspace

# a network's row
DEPTH, HEADS, NORM, TANH, LENGTH = range(5)
VALUE, TARGET, GRADIENT, FIRST_MOMENT, SECOND_MOMENT, WIDTHS, OFFSETS = range(5, 12)
TAPE_H, TAPE_Y, TAPE_MEAN, TAPE_INV_STD, TAPE_SUMS = range(12, 17)
NETWORK = 17

# a job: one row for every thread
THREAD, THREADS, ROWS, SPACING, BLOCK, COUNTER, RULE, ACTOR, CRITIC = range(9)
BATCH, NOISE, ACTION, Q, PENALTY, ERROR, STATE_ACTION, SLOPE, TOTALS = range(9, 18)
WORKSPACE, WORKSPACE_MOMENTS, TRANSPOSED, TRANSPOSED_LENGTH, INDEX, INPUT_BAR = range(18, 24)
JOB = 24

# the rule, in float64: the constants of `Rule`, then what changes from update to update
NOISE_SCALE, CLIP, BC_CRITIC, DISCOUNT, BC_ACTOR, TAU, ACTOR_LR, CRITIC_LR, NORMALIZE = range(9)
MOVE, ACTOR_STEPS, CRITIC_STEPS = range(9, 12)
RULES = 12

TOTALS_KEPT = 5


class Rule(NamedTuple):
    """The constants of an update, named as in `ReBRACConfig`."""

    policy_noise: float
    noise_clip: float
    critic_bc_coef: float
    discount: float
    actor_bc_coef: float
    tau: float
    actor_lr: float
    critic_lr: float
    normalize_q: bool


class Network(NamedTuple):
    """A stack of networks (one for the actor) in compiled code; see `Net`, `OptimiserState` and `Tape`; their heads are the leading axis."""

    value: Any
    widths: Any
    offsets: Any
    norm: bool
    tanh: bool
    state: OptimiserState
    tape: Tape


class Task(NamedTuple):
    """One thread's part of an update of B rows."""

    thread: int
    threads: int
    group_rank: int  # its number among the threads that share its critics
    group_size: int
    low: int  # its critics: low <= head < high
    high: int
    first: int  # its rows of these: first <= row < end
    end: int
    my_first: int  # its rows of the actor
    my_end: int
    counter: int  # address of the barrier's
    rule: Any
    batch: Any  # (B, 2d + 2m + 2)
    noise: Any  # (B, m)
    actor: Network
    critic: Network
    action: Any  # (B, m)
    q: Any  # (heads, B, 1)
    penalty: Any  # (B,)
    error: Any  # (heads, B, 1)
    s_a: Any  # (B, d + m)
    slope: Any  # (B, m)
    totals: Any  # (threads, 5), float64
    workspace: Workspace
    index: Any  # (block,), int64
    x_bar: Any  # (block, d + m)


@part
def _network(like, row, B, W, threads):
    j = integers(row)
    L, heads, P = j[DEPTH], j[HEADS], j[LENGTH]
    return Network(
        carray(at(like, j[VALUE]), (P,)),
        carray(integers(j[WIDTHS]), (L + 2,)),
        carray(integers(j[OFFSETS]), (heads, L + 1, 4)),
        j[NORM] != 0,
        j[TANH] != 0,
        OptimiserState(
            carray(at(like, j[TARGET]), (P,)),
            carray(at(like, j[GRADIENT]), (P,)),
            carray(at(like, j[FIRST_MOMENT]), (P,)),
            carray(at(like, j[SECOND_MOMENT]), (P,)),
        ),
        Tape(
            carray(at(like, j[TAPE_H]), (heads, L, B, W)),
            carray(at(like, j[TAPE_Y]), (heads, L, B, W)),
            carray(at(like, j[TAPE_MEAN]), (heads, L, B)),
            carray(at(like, j[TAPE_INV_STD]), (heads, L, B)),
            carray(at(like, j[TAPE_SUMS]), (heads, threads, L + 1, 3, W)),
        ),
    )


@part
def net_of(network, head):
    """One network of the stack."""
    return Net(network.value, network.widths, network.offsets[head], network.norm, network.tanh)


@part
def target_of(network, head):
    """Its target."""
    return Net(network.state.target, network.widths, network.offsets[head], network.norm, network.tanh)


@part
def tape_of(network, head):
    """Its tape."""
    tape = network.tape
    return Tape(tape.h[head], tape.y[head], tape.mean[head], tape.inv_std[head], tape.sums[head])


@part
def task_of(like, address):
    """The task that a job's row describes."""
    j = integers(address)
    thread, threads, B, W, block = j[THREAD], j[THREADS], j[ROWS], j[SPACING], j[BLOCK]
    actor, critic = _network(like, j[ACTOR], B, W, threads), _network(like, j[CRITIC], B, W, threads)
    m, x, heads = actor.widths[-1], critic.widths[0], len(critic.offsets)
    # threads that work for one critic only keep its parameters in their caches
    groups = heads if threads % heads == 0 else 1
    group_size = threads // groups
    group_rank, group = thread % group_size, thread // group_size
    my_first, my_rows = share(B, thread, threads)
    first, rows = share(B, group_rank, group_size)
    workspace = carray(at(like, j[WORKSPACE]), (2, block, W))
    moments = carray(at(like, j[WORKSPACE_MOMENTS]), (2, block))
    transposed = carray(at(like, j[TRANSPOSED]), (j[TRANSPOSED_LENGTH],))
    return Task(
        thread,
        threads,
        group_rank,
        group_size,
        group * heads // groups,
        (group + 1) * heads // groups,
        first,
        first + rows,
        my_first,
        my_first + my_rows,
        j[COUNTER],
        carray(at(0.0, j[RULE]), (RULES,)),
        carray(at(like, j[BATCH]), (B, 2 * x + 2)),
        carray(at(like, j[NOISE]), (B, m)),
        actor,
        critic,
        carray(at(like, j[ACTION]), (B, m)),
        carray(at(like, j[Q]), (heads, B, 1)),
        carray(at(like, j[PENALTY]), (B,)),
        carray(at(like, j[ERROR]), (heads, B, 1)),
        carray(at(like, j[STATE_ACTION]), (B, x)),
        carray(at(like, j[SLOPE]), (B, m)),
        carray(at(0.0, j[TOTALS]), (threads, TOTALS_KEPT)),
        Workspace(workspace[0], workspace[1], moments[0], moments[1], transposed),
        carray(integers(j[INDEX]), (block,)),
        carray(at(like, j[INPUT_BAR]), (block, x)),
    )
