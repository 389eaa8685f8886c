"""Build `Transitions` from arrays: numpy arrays, HDF5 data sets or a stream of episodes.

`from_arrays` is the public entry point; the readers use the other two. Sources are read in blocks of rows, directly into
the float32 result: peak memory is the result plus one block and a few bytes per row, whatever the sources' precision.
Every number is checked on the way: it must be finite, and actions must lie within their bounds, which become [-1, 1].
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from jacrec.data.readers.checks import (
    as_actions,
    as_array,
    as_column,
    as_finite,
    as_flags,
    check_environment,
    check_lengths,
    check_shapes,
    check_widths,
    stated_box,
    warn_of_limit,
)
from jacrec.data.readers.ends import discontinuities, episode_ends
from jacrec.data.readers.repair import ADVICE, Repairs, finite
from jacrec.data.references import reference_by_env
from jacrec.data.transitions import ARRAYS, Bound, DatasetInfo, Transitions, with_bounds
from jacrec.util.caller import warn_caller

BLOCK = 1 << 16
"""rows read at a time"""
UNMARKED_SHARE = 0.01
"""share of rows with such a difference above which the row order, rather than a missing flag, must be wrong"""


def from_arrays(
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    terminals: np.ndarray,
    *,
    ends: np.ndarray | None = None,
    lengths: np.ndarray | list[int] | None = None,
    next_observations: np.ndarray | None = None,
    env_id: str | None = None,
    action_low: Bound | None = None,
    action_high: Bound | None = None,
    name: str = "arrays",
) -> Transitions:
    """Transitions from your own arrays, in the order of collection, ready for `jacrec.training.train(data=...)`.

    Args:
        observations: (n, d), the state before each action.
        actions: (n, m) within their bounds.
        rewards: (n,).
        terminals: (n,) bool, the MDP terminated with this row's action: no bootstrapping. Without `ends` and `lengths`, such
            a row also ends its episode.
        ends: (n,) bool, the row is the last of its episode for any reason (D4RL calls the non-terminal ones timeouts, so
            there it is terminals | timeouts). A terminal row without a mark lies inside an episode that goes on, as at the
            goals of OGBench's single tasks (terminals = 1 - masks), unless `next_observations` shows that it does not.
        lengths: alternative to `ends`: rows of each episode, summing to n.
        next_observations: (n, d), the state after each action. If omitted, the successor of a row is the next row of its
            episode, and last rows, whose successor is unknown, are not used to train world models.
        env_id: gymnasium id of the evaluation environment.
        action_low, action_high: the bounds of the actions in the environment's units, () or (m,). The actions are mapped to
            [-1, 1], in which networks act, and back when a policy plays. Omit both for actions that already lie in [-1, 1]
            and stand for the environment's own bounds.

    Raises:
        ValueError: arrays that do not match each other or the environment, masked, complex or other values that are not
            real numbers, episodes longer than the environment's time limit, non-finite numbers, actions outside their bounds,
            or `ends` that omit terminal rows after which the state is reset. The message names the row.
    """
    if ends is not None and lengths is not None:
        raise ValueError("ends, lengths: expected at most one of them, got both; they carry the same information")
    if env_id is not None and not isinstance(env_id, str):
        raise ValueError(f"{name}: env_id: expected a gymnasium id such as 'Hopper-v4', got {env_id!r}")
    states, acts = as_array(observations, name, "observations"), as_array(actions, name, "actions")
    reward = as_column(as_array(rewards, name, "rewards"), name, "rewards")
    terminal = as_flags(as_column(as_array(terminals, name, "terminals"), name, "terminals"), name, "terminals")
    following = None if next_observations is None else as_array(next_observations, name, "next_observations")
    check_shapes(name, states, acts, reward, terminal, terminal, following)
    last = episode_ends(name, states, terminal, ends, lengths, following)
    reference = reference_by_env(env_id) if env_id else None
    refs = (reference.ref_min, reference.ref_max) if reference else (None, None)
    info = with_bounds(DatasetInfo(name, env_id, *refs, source=ARRAYS), action_low, action_high)
    return from_flat(states, acts, reward, terminal, last, info, following)


def from_flat(
    observations: Any,
    actions: Any,
    rewards: np.ndarray,
    terminal: np.ndarray,
    last: np.ndarray,
    info: DatasetInfo,
    next_observations: Any = None,
    repairs: Repairs | None = None,
) -> Transitions:
    """Transitions from rows in the order of collection. Sources are numpy arrays or HDF5 data sets.

    observations (n, d), actions (n, m), rewards (n,), terminal (n,) bool, last (n,) bool: the row is the last of its
    episode. Without `next_observations` the successor of a row is the next row of its episode; last rows have none and are
    dropped, with the terminal ones kept in `blind_ends`. With `next_observations`, a row inside an episode whose recorded
    successor is not the next row ends its episode, and a warning states the number of such rows. `repairs` clips actions that are slightly out of bounds.

    Raises:
        ValueError: as `from_arrays`.
    """
    check_shapes(info.name, observations, actions, rewards, terminal, last, next_observations)
    n, d, m = len(rewards), observations.shape[1], actions.shape[1]
    check_environment(info, d, m)
    box = stated_box(info, m)
    last = last.astype(bool)
    last[-1] = True
    stops = np.flatnonzero(last)
    warn_of_limit(info.name, np.diff(stops, prepend=-1), terminal[stops])
    if next_observations is None:
        check_lengths(info, last)
    known = np.ones(n, bool) if next_observations is not None else ~last
    blind = np.flatnonzero(terminal & ~known)
    found, ends = _empty(int(known.sum()), d, m, info), _empty(len(blind), d, m, info)
    reward = as_finite(rewards, 0, info.name, "rewards")
    done, discontinuous = 0, []  # rows of `found` filled so far; rows whose successor is not the next row
    for a in range(0, n, step := _block(observations, n)):
        b = min(a + step, n)
        state = as_finite(observations[a:b], a, info.name, "observations")
        action = as_actions(actions[a:b], a, info.name, repairs, box)
        own, c = known[a:b], int(known[a:b].sum())
        found.state[done : done + c], found.action[done : done + c] = _select(state, own), _select(action, own)
        mine = slice(*np.searchsorted(blind, (a, b)))
        ends.state[mine], ends.action[mine] = state[blind[mine] - a], action[blind[mine] - a]
        # the predecessors of this block's rows: from the last row of the previous block to the last but one of this block
        before, first = known[max(a - 1, 0) : b - 1], 0 if a else 1
        start = done - int(before[0]) if a else 0
        behind = slice(start, start + int(before.sum()))
        found.next_action[behind] = _select(action[first:], before)
        if next_observations is None:
            found.next_state[behind] = _select(state[first:], before)
        else:
            found.next_state[a:b] = as_finite(next_observations[a:b], a, info.name, "next_observations")
            inside = np.flatnonzero(~last[behind])
            apart = discontinuities(found.next_state[behind], state[first:], inside)
            discontinuous.append(apart + behind.start)
        done += c
    if next_observations is not None:
        _end_episodes(info, last, np.concatenate(discontinuous))
        found.next_action[last] = 0.0
    episode = np.zeros(n, np.int64)
    np.cumsum(last[:-1], out=episode[1:])
    for part, rows in ((found, known), (ends, blind)):
        part.reward[:], part.terminal[:], part.episode[:] = _select(reward, rows), terminal[rows], _select(episode, rows)
        part.has_next_action[:] = ~last[rows]
    ends.next_state[:] = ends.state
    return replace(found, blind_ends=ends if len(ends) else None)


def from_episodes(
    episodes: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]],
    steps: int,
    info: DatasetInfo,
    repairs: Repairs | None = None,
) -> Transitions:
    """Transitions from (states (T + 1, d), actions (T, m), rewards (T,), terminations (T,)) per episode.

    `steps` is the sum of all T, known in advance; every successor is known. A termination inside an episode marks its row
    as terminal without splitting the episode. `repairs` mends what `jacrec.data.readers.repair` describes, T states included.

    Raises:
        ValueError: as `from_flat`, naming episode and step, or the steps do not sum to `steps`.
    """
    found, done, read, box = None, 0, 0, None
    for number, (states, actions, rewards, terminations) in enumerate(episodes):
        where, T = f"{info.name}: episode {number}", len(rewards)
        read += T
        if not T:
            if repairs is None:
                raise ValueError(f"{where}: expected at least one step, got none; {ADVICE}")
            repairs.skipped.append(number)
            continue
        observed = T if repairs is not None and len(states) == T else T + 1
        for key, value, shape in (
            ("observations", states, (observed, "d")),
            ("actions", actions, (T, "m")),
            ("terminations", terminations, (T,)),
        ):
            if np.ndim(value) != len(shape) or len(value) != shape[0]:
                advice = f"; {ADVICE}" if len(value) == T else ""
                raise ValueError(f"{where}: {key}: expected shape {shape} for {T} rewards, got {np.shape(value)}{advice}")
        d, m = states.shape[1], actions.shape[1]
        if found is None:
            check_widths(info.name, d, m)
            check_environment(info, d, m)
            box = stated_box(info, m)
            found = _room(steps, d, m, info)
        if (d, m) != (found.state_dim, found.action_dim):
            raise ValueError(
                f"{where}: expected state_dim = {found.state_dim}, action_dim = {found.action_dim} as in episode 0, "
                f"got {d}, {m}"
            )
        if read > steps:
            raise ValueError(f"{where}: expected {steps} steps in total, got at least {read}; the metadata are wrong")
        terminal = as_flags(terminations, where, "terminations")
        n = T if repairs is None else repairs.usable(number, states, actions, rewards)
        # the first dropped step's action still follows the last usable step
        more = n < T and finite(states[n], actions[n])
        with _advising(repairs):
            action = as_actions(actions[: n + more], 0, where, repairs, box)
            state = as_finite(states[: n + 1] if n or more else states[:0], 0, where, "observations")
            reward = as_finite(rewards[:n], 0, where, "rewards")
        rows = slice(done, done + n)
        found.state[rows], found.next_state[rows] = state[:n], state[1:]
        found.action[rows], found.next_action[done : done + len(action[1:])] = action[:n], action[1:]
        found.reward[rows], found.terminal[rows], found.episode[rows] = reward, terminal[:n], number
        found.has_next_action[rows] = True
        if n and not more:
            found.has_next_action[done + n - 1] = False
        if repairs is not None and more and terminal[n] and finite(rewards[n]):
            repairs.ends.append((state[n], action[n], rewards[n], number))
        done += n
    if found is None or done == 0:
        raise ValueError(f"{info.name}: expected transitions, got none")
    if read != steps:
        raise ValueError(
            f"{info.name}: expected {steps} steps according to the metadata, got {read}; copy or download it again"
        )
    if done == steps:
        return found
    ends = None if repairs is None else repairs.blind_ends(info)
    return replace(found.rows(slice(0, done)), blind_ends=ends)


def _room(steps: int, d: int, m: int, info: DatasetInfo) -> Transitions:
    """`_empty` for as many transitions as the metadata promise."""
    try:
        return _empty(steps, d, m, info)
    except MemoryError as error:
        raise ValueError(
            f"{info.name}: expected a number of steps that fits into memory, got {steps} in the metadata ({error}); if the data "
            "set does not hold as many, copy or download it again"
        ) from error


@contextmanager
def _advising(repairs: Repairs | None) -> Iterator[None]:
    """Add to the errors of an episode how it might be repaired."""
    try:
        yield
    except ValueError as error:
        if repairs is None:
            error.add_note(ADVICE)
        raise


def _empty(n: int, d: int, m: int, info: DatasetInfo) -> Transitions:
    """Uninitialised arrays for n transitions; next actions are zeros."""
    floats, flags = np.float32, np.bool_
    return Transitions(
        np.empty((n, d), floats),
        np.empty((n, m), floats),
        np.empty(n, floats),
        np.empty((n, d), floats),
        np.zeros((n, m), floats),
        np.empty(n, flags),
        np.empty(n, flags),
        np.empty(n, np.int64),
        info,
    )


def _block(source: Any, n: int) -> int:
    """Rows to read at a time: whole chunks of a compressed data set, so that none is decompressed twice."""
    chunks = getattr(source, "chunks", None)
    return min(BLOCK, n) if not chunks else max(1, round(BLOCK / chunks[0])) * chunks[0]


def _select(block: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """block[rows], without a copy if the mask selects everything."""
    return block if rows.dtype == bool and rows.all() else block[rows]


def _end_episodes(info: DatasetInfo, last: np.ndarray, discontinuous: np.ndarray) -> None:
    """End episodes at the rows `discontinuous`, in place. A few are unmarked episode ends; many mean a wrong row order."""
    if not len(discontinuous):
        return
    row = int(discontinuous[0])
    what = f"next_observations: {len(discontinuous)} rows inside an episode differ from the next row, first at row {row}"
    if len(discontinuous) > max(1, UNMARKED_SHARE * len(last)):
        raise ValueError(
            f"{info.name}: {what}; expected rows in the order of collection with the last row of each episode marked: "
            "mark those rows (timeouts, ends), or every row if the rows are shuffled"
        )
    warn_caller(f"{info.name}: {what}; these rows are treated as episode ends")
    last[discontinuous] = True
