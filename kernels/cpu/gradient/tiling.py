"""The rows of a job: the shares that threads compute, and the tiles that pass through all layers together.

A tile of a share is of the same height whoever computes it, and so are the runs of rows over which a gradient is summed: the
result has the same bits for any number of helpers.
"""

from typing import NamedTuple

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.layout import network_of
from jacrec.kernels.cpu.base.mlp import copy_to
from jacrec.kernels.cpu.base.rows import WORD
from jacrec.kernels.cpu.base.shares import helper_of, next_share, owner_of
from jacrec.kernels.cpu.base.tiles import at, integers, size_of
from jacrec.kernels.cpu.base.waiting import nanoseconds
from jacrec.kernels.cpu.gradient.job import Lent, read_lent

LENT = len(Lent._fields)


class Share(NamedTuple):
    """A run of rows that a thread computes, or its team."""

    number: int  # −1: there is none left
    first: int
    last: int
    only: int  # whether it is all that the thread computes
    begun: int  # nanoseconds


class Tile(NamedTuple):
    """Rows that pass through all layers together."""

    begin: int  # the first one's number among all rows
    R: int


@part
def take_share(task, team, longest):
    """The next share of a thread; longest: nanoseconds of its longest so far.

    A caller without helpers takes all shares together: their rows use every weight loaded. So does a team, which has one.
    """
    sizes, division = task.sizes, task.division
    only = team.size > 1 or division.helpers == 0
    t = 0 if only else next_share(division, sizes.shares, longest)
    last = sizes.rows if only else sizes.rows * (t + 1) // sizes.shares
    return Share(t, sizes.rows * t // sizes.shares, last, only, nanoseconds())


@part
def clear_gradients(like, task, share, team):
    """Set the sums that a share adds to to 0; the thread's part of them."""
    sizes, length = task.sizes, network_of(task.policies, 0).gradient
    place, sums = _place(sizes, share.first), at(like, task.call.gradients)
    elements, start = (_place(sizes, share.last - 1) + 1 - place) * length, place * length
    for i in range(elements * team.thread // team.size, elements * (team.thread + 1) // team.size):
        sums[start + i] = type(like)(0)


@part
def next_tile(sizes, share, begin):
    """The tile of a share that begins at a row."""
    end = _tile_end(sizes, begin)
    while share.only and end < share.last and _tile_end(sizes, end) - begin <= sizes.widest:
        end = _tile_end(sizes, end)
    return Tile(begin, end - begin)


@part
def segment(sizes, tile, r):
    """The policy of the tile's row r, and how many rows from there on share it and one share's tile."""
    row, end = tile.begin + r, min(tile.begin + tile.R, _tile_end(sizes, tile.begin + r))
    if not sizes.batched:
        return 0, end - row
    n = row // sizes.M
    return n, min(end, (n + 1) * sizes.M) - row


@part
def gradient_of(like, task, tile, r):
    """The address of the gradient that the tile's row r adds to."""
    place = _place(task.sizes, tile.begin + r)
    return task.call.gradients + place * network_of(task.policies, 0).gradient * size_of(like)


@part
def collect(like, task, team):
    """What helpers have done, for their caller: copies returns and path, and notes where gradients are.

    Nothing where the caller waits for them without end: they write to its memory, and may not have finished yet.
    """
    sizes, call, division, size = task.sizes, task.call, task.division, size_of(like)
    if division.helper or team.size > 1:
        return
    results, d, m = integers(call.results), sizes.d, sizes.m
    for t in range(sizes.shares):
        helper = helper_of(owner_of(division, t))
        results[t] = call.gradients
        if helper and division.patience >= 0:
            lent = read_lent(call.lent + helper * LENT * WORD)
            first, last = sizes.rows * t // sizes.shares, sizes.rows * (t + 1) // sizes.shares
            results[t] = lent.gradients
            if call.path_s:
                for j in range(sizes.H + 1):
                    at_row, count = (j * sizes.rows + first) * size, last - first
                    copy_to(like, count * d, lent.path_s + at_row * d, call.path_s + at_row * d)
                    copy_to(like, count * m, lent.path_a + at_row * m, call.path_a + at_row * m)
            else:
                copy_to(like, last - first, lent.returns + first * size, call.returns + first * size)


@part
def _share_of(sizes, row):
    """The share that a row belongs to."""
    return ((row + 1) * sizes.shares + sizes.rows - 1) // sizes.rows - 1


@part
def _tile_end(sizes, row):
    """The end of a row's tile. The tiles of a share are of equal height: the last one would otherwise be a sliver."""
    t = _share_of(sizes, row)
    first, rows = sizes.rows * t // sizes.shares, sizes.rows * (t + 1) // sizes.shares - sizes.rows * t // sizes.shares
    tiles = -(-rows // sizes.tile)
    return first + rows * (((row - first + 1) * tiles + rows - 1) // rows) // tiles


@part
def _place(sizes, row):
    """The row of `Call.gradients` that holds a row's gradient."""
    return _share_of(sizes, row) + (row // sizes.M if sizes.batched else 0)
