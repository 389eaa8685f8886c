"""Shares of a job, computed by its caller and by helpers that may lose their core at any moment.

Each share has an owner word, changed by compare-and-swap alone:

    free → the caller's
    free → a helper's → done, or revoked by the caller, which computes the share itself

The caller never waits for a helper that has not begun a share. When nothing is free it waits for those that helpers have
begun, at most `patience` thousandths of the longest share that it computed itself; then it revokes them. So a caller whose
helpers all lose their cores takes 1.15 times what it takes alone with two shares of equal length, and never more than
that by another share for every helper. A helper writes to memory of its own only, and a share is computed in the
same order by whomever: the result has the same bits whoever took part, and a helper that goes on after its share was
revoked harms nothing.
"""

from typing import NamedTuple

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.rows import WORD
from jacrec.kernels.cpu.base.tiles import atomic_load, fetch_add, integers
from jacrec.kernels.cpu.base.waiting import compare_and_swap, nanoseconds, relax, rest

FREE, MINE, REVOKED = range(3)
THEIRS = 2
"""helper h = 1, 2, … owns a share as THEIRS + 2 h − 1, and has done it as THEIRS + 2 h"""
SPACING = 16
"""int64 from one owner word to the next: two cache lines, since processors fetch lines in pairs"""


class Division(NamedTuple):
    """Who takes part in a job, and what each share's owner is."""

    helpers: int = 0  # how many helpers may take shares
    owners: int = 0  # address of the owner words, `SPACING` int64 apart
    revoked: int = 0  # address of the number of revoked shares
    helper: int = 0  # whose row this is: a helper's number from 1 on, or 0, the caller's
    patience: int = 0  # thousandths of a share; −1: no share is revoked, and who called waits for all that have begun
    delay: int = 0  # nanoseconds that a helper loses after it has taken a share, and its caller before its first: for tests


@part
def owner_of(division, t):
    """The owner word of share t."""
    return atomic_load(division.owners + t * SPACING * WORD)


@part
def helper_of(owner):
    """The number of the helper that has done a share, 0 if none has."""
    return (owner - THEIRS) // 2 if owner > THEIRS and owner % 2 == 0 else 0


@part
def _take(division, t, before, after):
    return compare_and_swap(division.owners + t * SPACING * WORD, before, after)


@part
def _lose(delay):
    begun = nanoseconds()
    while nanoseconds() - begun < delay:
        rest()


@part
def next_share(division, shares, longest):
    """The next share for this thread to compute, −1 if there is none; longest: nanoseconds of its longest so far."""
    if division.helper:
        for t in range(shares - 1, 0, -1):
            if _take(division, t, FREE, THEIRS + 2 * division.helper - 1):
                _lose(division.delay)
                return t
        return -1
    if longest == 0:
        _lose(division.delay)
    for t in range(shares):
        if _take(division, t, FREE, MINE):
            return t
    if division.patience < 0:
        return -1
    begun = nanoseconds()
    while True:
        late = -1
        for t in range(shares):
            if owner_of(division, t) > THEIRS and owner_of(division, t) % 2 == 1:
                late = t
        if late < 0:
            return late
        # helpers are waited for once: what is late after a revocation is revoked at once
        if integers(division.revoked)[0] or (nanoseconds() - begun) * 1000 > longest * division.patience:
            owner = owner_of(division, late)
            if owner % 2 == 1 and _take(division, late, owner, REVOKED):
                fetch_add(division.revoked)
                return late
        relax()


@part
def is_revoked(division, t):
    """Whether the thread may stop computing share t."""
    return division.helper and owner_of(division, t) == REVOKED


@part
def end_share(division, t):
    """Share t has been computed. False if it was revoked: then so is everything else."""
    own = THEIRS + 2 * division.helper - 1
    return division.helper == 0 or _take(division, t, own, own + 1)
