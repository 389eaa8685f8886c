"""A gradient's job: a row of int64 for each of its threads, and the NamedTuples that compiled code reads from it.

The row begins with counters, which a team increments in its caller's row; the sections of `Task`, `Scratch` and `Tapes` follow, then the
flags of a thread team. Addresses are bytes, everything else counts elements unless stated otherwise.
"""

from itertools import accumulate
from typing import NamedTuple

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.layout import Network, Stack
from jacrec.kernels.cpu.base.mlp import turn_weights
from jacrec.kernels.cpu.base.rows import WORD, reader, relative_reader
from jacrec.kernels.cpu.base.shares import Division
from jacrec.kernels.cpu.base.team import FLAG
from jacrec.kernels.cpu.gradient.transition import Chain
from jacrec.kernels.cpu.gradient.values import Scales

ARRIVALS, TEAM_SIZE = range(2)
"""counters: threads of a team that have arrived, and its agreed size"""
COUNTERS = 8


class Sizes(NamedTuple):
    """Sizes of a job."""

    shares: int  # shares of rows, each computed by one thread, or the only one by a team
    team: int  # threads of a team; 1: none
    d: int
    m: int
    H: int
    M: int
    rows: int  # N·M: row n·M + m is particle m of state n
    batched: int  # whether every real state has its own policy
    tile: int  # rows that pass through all layers together
    widest: int  # the same in a caller that computes all shares: it takes several shares' tiles together
    acts: int = 1  # steps at which π_ψ acts: H + 1, or H where the last term takes π₀'s action


class Constants(NamedTuple):
    """Addresses of what does not change from call to call."""

    discounts: int  # γ^j, (H+1,)
    weights: int  # γ^j times a row's share of the mean, (H+1,)
    policy_copies: int  # the policy's `copies.CopyJob`
    penalties: int = 0  # β γ^j, (H+1,); without anchor not read


class Call(NamedTuple):
    """Addresses of a call's tensors, and its memory."""

    state: int = 0  # (N, d)
    noise: int = 0  # (N, M, H, rows, d)
    member: int = 0  # ensembles: the network of every transition, (N, M, H) int64
    returns: int = 0  # (N·M,), written
    gradients: int = 0  # (policies + shares − 1, length), written
    memory: int = 0  # workspace, `memory_length` elements for each thread of a team
    memory_length: int = 0
    values: int = 0  # Ĵ (N,), written
    norms: int = 0  # ‖∇Ĵ‖ (policies,), written
    pieces: int = 0  # the parameters that an update moves: rows of `Piece`
    piece_count: int = 0
    parts: int = 0  # shares of the reduction and of the step
    squares: int = 0  # each part's ‖·‖², float64
    rates: int = 0  # α and the largest gradient norm, 0 for any; float64
    accepted: int = 0  # whether a policy's step was taken, (policies,) int64, written
    actions: int = 0  # π_ψ (N, m), written
    path_s: int = 0  # s̃ (H+1, N·M, d), written; 0: the gradient is computed, else the rollout alone
    path_a: int = 0  # ã (H+1, N·M, m), written with it
    terms: int = 0  # of reward or critic where the job has none: r or Q along the path, (H+1, N·M)
    terms_s: int = 0  # their gradients by state (H+1, N·M, d)
    terms_a: int = 0  # and by action (H+1, N·M, m)
    w: int = 0  # w_j, γ^j- and M-weighted, (H+1, N·M, m), written beside the path; 0: it is not asked for
    squares_of: int = 0  # ‖w Π_ψ‖² of each row's gradient, (N·M,), written; 0: it is not asked for
    counted: int = 0  # which of each layer's weight and bias count in it, (depth+1, 2) int64
    results: int = 0  # the address of the gradients in which each share's are, (shares,) int64, written
    lent: int = 0  # what helper h = 1, 2, … has written, row h of `Lent`


class Lent(NamedTuple):
    """Addresses of what a helper has written for its shares, in memory of its own: as in `Call`."""

    gradients: int
    returns: int
    path_s: int
    path_a: int


class Piece(NamedTuple):
    """A parameter of ψ. Columns are contiguous in the gradient."""

    to: int  # its address
    policy_stride: int  # elements from one policy to the next
    row_stride: int
    column_stride: int
    start: int  # where its gradient starts in a policy's vector
    gradient_stride: int  # elements from row to row there
    rows: int
    columns: int


class Scratch(NamedTuple):
    """Addresses of a thread's buffers for a tile of R rows; in a job, bytes from the start of its memory."""

    states: int  # (H+1, R, d)
    actions: int  # (H+1, R, m)
    values_s: int  # γ^j-weighted gradients of reward and critic by state, (H+1, R, d)
    values_a: int  # and by action, (H+1, R, m)
    x: int
    x_bar: int
    constant: int
    u: int
    y: int
    mu: int
    pulled_s: int
    pulled_a: int
    w: int
    lam: int
    q: int
    r: int
    base: int  # π₀'s actions, (R, m)
    total: int
    inputs: int  # the policy's inputs, (H+1, R, d), grouped by policy
    returns: int  # (R,)


class Tapes(NamedTuple):
    """Addresses of the buffers that a team shares; in a job, bytes from the start of its first thread's memory."""

    work: int
    policy: int
    bars: int
    reward: int
    critic: int
    anchor: int
    dynamics: int
    order: int  # ensembles: the rows in the order of their networks, (H, R) int64
    xs: int  # and their inputs in that order
    spread: int  # ∂x/∂y of outputs that scale the noise, (H, R, d)


class Turned(NamedTuple):
    """Where each stack's transposed weights lie, in bytes from the start of a thread's memory; 0: they are not transposed."""

    policies: int
    reward: int
    critics: int
    anchor: int
    dynamics: int


class Task(NamedTuple):
    """A job in compiled code."""

    sizes: Sizes
    policies: Stack
    reward: Stack
    critics: Stack  # as the reward, none if its count is 0: then the call gives its terms
    anchor: Stack  # π₀, for its penalty or its action in the last term; none if its count is 0
    dynamics: Stack
    chain: Chain
    scales: Scales
    constants: Constants
    call: Call
    division: Division


class Sections(NamedTuple):
    """Where each section of a job begins."""

    sizes: int
    policies: int
    reward: int
    critics: int
    anchor: int
    dynamics: int
    chain: int
    scales: int
    constants: int
    call: int
    division: int
    scratch: int
    tapes: int
    turned: int
    flags: int


_KINDS = (Sizes, Stack, Stack, Stack, Stack, Stack, Chain, Scales, Constants, Call, Division, Scratch, Tapes, Turned)
AT = Sections(*accumulate((len(kind._fields) for kind in _KINDS), initial=COUNTERS))
CALL = slice(AT.call, AT.call + len(Call._fields))
_read_sizes, _read_stack, _read_chain, _read_scales = reader(Sizes), reader(Stack), reader(Chain), reader(Scales)
_read_constants, _read_call, _read_division = reader(Constants), reader(Call), reader(Division)
_read_turned = reader(Turned)
read_lent, read_piece, read_scratch, read_tapes = reader(Lent), reader(Piece), relative_reader(Scratch), relative_reader(Tapes)


def job_length(team: int) -> int:
    """The length of a job's row for a team of so many threads."""
    return AT.flags + team * FLAG


@part
def task_of(job):
    """The task that the row at an address describes."""
    return Task(
        _read_sizes(job + AT.sizes * WORD),
        _read_stack(job + AT.policies * WORD),
        _read_stack(job + AT.reward * WORD),
        _read_stack(job + AT.critics * WORD),
        _read_stack(job + AT.anchor * WORD),
        _read_stack(job + AT.dynamics * WORD),
        _read_chain(job + AT.chain * WORD),
        _read_scales(job + AT.scales * WORD),
        _read_constants(job + AT.constants * WORD),
        _read_call(job + AT.call * WORD),
        _read_division(job + AT.division * WORD),
    )


@part
def with_turned(like, task, job):
    """The task with a thread's own transposed weights, where the job has room for them."""
    turned = _read_turned(job + AT.turned * WORD)
    return Task(
        task.sizes,
        _turn(like, task, task.policies, turned.policies),
        _turn(like, task, task.reward, turned.reward),
        _turn(like, task, task.critics, turned.critics),
        _turn(like, task, task.anchor, turned.anchor),
        _turn(like, task, task.dynamics, turned.dynamics),
        task.chain,
        task.scales,
        task.constants,
        task.call,
        task.division,
    )


@part
def _turn(like, task, stack, offset):
    return turn_weights(like, stack, task.call.memory + offset) if offset else stack


class Networks(NamedTuple):
    """The networks of a job in Python: the first of each stack."""

    policy: Network
    reward: Network | None
    critic: Network | None
    dynamics: Network
    anchor: Network | None


def memory_layout(
    sizes: Sizes, chain: Chain, nets: Networks, critics: int, first: int, itemsize: int
) -> tuple[Scratch, Tapes, int]:
    """The buffers of a tile of `sizes.widest` rows, and the elements of memory that they take.

    critics: networks of the critic. first: padded width of the dynamics' first layer.
    """
    d, m, H, R = sizes.d, sizes.m, sizes.H, sizes.widest
    scratch = Scratch(
        states=(H + 1) * d,
        actions=(H + 1) * m,
        values_s=(H + 1) * d,
        values_a=(H + 1) * m,
        x=d + m,
        x_bar=d + m,
        constant=first,
        u=d,
        y=nets.dynamics.outputs,
        mu=d,
        pulled_s=d,
        pulled_a=m,
        w=m,
        lam=d,
        q=critics,
        r=1,
        base=m,
        total=first,
        inputs=(H + 1) * d,
        returns=1,
    )
    ensemble = min(1, chain.members)
    tapes = Tapes(
        work=4 * max(net.widest for net in nets if net is not None),
        policy=(H + 1) * nets.policy.tape,
        bars=(H + 1) * nets.policy.bars,
        reward=0 if nets.reward is None else nets.reward.tape,
        critic=0 if nets.critic is None else critics * nets.critic.tape,
        anchor=0 if nets.anchor is None else nets.anchor.tape,
        dynamics=H * chain.K * nets.dynamics.tape + nets.dynamics.spare,
        order=2 * H * ensemble,  # two elements of float32 for an int64
        xs=(d + m) * ensemble,
        spread=H * d * chain.scaled,
    )
    *starts, total = accumulate((-(-count * R // 16) * 16 for count in (*scratch, *tapes)), initial=0)
    offsets = [start * itemsize for start in starts]
    return Scratch(*offsets[: len(scratch)]), Tapes(*offsets[len(scratch) :]), total
