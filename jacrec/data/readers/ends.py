"""Where the episodes of a user's arrays end."""

from typing import Any

import numpy as np

from jacrec.data.readers.checks import as_array, as_flags, as_lengths

JUMP = 1e-3
"""relative difference above which a recorded successor and the next row count as different states"""
RESET = 2.0
"""a change of state this many times the largest change inside the episodes is a reset"""
LEAST, SAMPLE = 100, 10_000
"""rows from which the largest change inside the episodes is taken; with fewer it tells nothing"""


def episode_ends(
    name: str,
    observations: np.ndarray,
    terminal: np.ndarray,
    ends: Any = None,
    lengths: Any = None,
    next_observations: np.ndarray | None = None,
) -> np.ndarray:
    """(n,) bool, the last rows of the episodes, from what a user says about them (see `from_arrays`).

    Raises:
        ValueError: `ends` or `lengths` do not fit the rows, or `ends` leaves out resets after terminal rows.
    """
    n = len(terminal)
    if ends is None and lengths is None:
        return terminal.copy()
    if lengths is not None:
        last = np.zeros(n, bool)
        last[np.cumsum(as_lengths(lengths, n, name)) - 1] = True
    else:
        marks = as_array(ends, name, "ends")
        if marks.shape != (n,):
            raise ValueError(f"{name}: ends: expected shape ({n},) as terminals, got {marks.shape}")
        last = as_flags(marks, name, "ends").copy()
    inner = np.flatnonzero(terminal[:-1] & ~last[:-1])
    if next_observations is not None and len(inner):
        everything = np.arange(len(inner))
        apart = discontinuities(next_observations[inner], observations[inner + 1], everything)
        last[inner[apart]] = True
        inner = np.delete(inner, apart)
    if lengths is None:
        _expect_no_resets(name, observations, terminal | last, inner)
    return last


def discontinuities(successor: np.ndarray, following: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Those of the rows `inside` an episode whose successor is not the next row."""
    differing = inside[(successor[inside] != following[inside]).any(1)]
    with np.errstate(invalid="ignore"):  # infinite numbers are reported with their row elsewhere
        gap = np.abs(successor[differing] - following[differing])
        return differing[(gap > JUMP * (1.0 + np.abs(following[differing]))).any(1)]


def _expect_no_resets(name: str, observations: np.ndarray, special: np.ndarray, inner: np.ndarray) -> None:
    """Raise ValueError if the state is usually reset after the rows `inner`: then they end episodes, which `ends` omits."""
    ordinary = np.flatnonzero(~special[:-1])
    if not len(inner) or len(ordinary) < LEAST:
        return
    ordinary = ordinary[:: -(-len(ordinary) // SAMPLE)]
    with np.errstate(invalid="ignore"):
        inside, after = (np.abs(np.subtract(observations[k + 1], observations[k], dtype=np.float64)) for k in (ordinary, inner))
        resets = (after > RESET * inside.max(0)).any(1)
    if resets.mean() > 0.5:
        row = int(inner[np.argmax(resets)])
        raise ValueError(
            f"{name}: ends: expected a mark on the last row of every episode, got none on {len(inner)} terminal rows after most "
            f"of which the state is reset, first after row {row}; mark them too (in D4RL's terms, ends = terminals | timeouts), "
            "or give lengths instead of ends if their episodes go on"
        )
