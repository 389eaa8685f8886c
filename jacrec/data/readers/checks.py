"""Validation of data before training; every error names the row and the remedy."""

from typing import Any

import numpy as np

from jacrec.data.known_envs import episode_limit, known_dimensions
from jacrec.data.readers.repair import MOST_EXCESS, Repairs
from jacrec.data.transitions import DatasetInfo
from jacrec.envs.actions import ActionBox
from jacrec.util.caller import warn_caller

ACTION_SLACK = 1e-4
"""tolerance beyond ±1 for rounded actions, which are then clipped"""
FEW_EPISODES = 10
"""fewer than these may well have ended alike"""
REAL = "biuf"
"""kinds of numpy types that are real numbers"""


def as_array(value: Any, name: str, key: str) -> np.ndarray:
    """A user's array, list or CPU tensor as a numpy array of real numbers, without a copy where there is one already.

    Raises:
        ValueError: masked values, or anything but real numbers.
    """
    parts = value if isinstance(value, list | tuple) else (value,)
    masked = next((k for k, part in enumerate(parts) if np.ma.is_masked(part)), None)
    if masked is not None:
        row = int(np.argwhere(np.ma.getmask(value))[0][0]) if isinstance(value, np.ma.MaskedArray) else masked
        raise ValueError(
            f"{name}: {key}: expected a number in every place, got masked values in row {row}; fill them or drop the rows"
        )
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # rows of unequal length, tensors on a GPU or with gradients
        raise ValueError(f"{name}: {key}: expected an array of numbers, got {type(value).__name__} ({error})") from error
    expect_numbers(array, name, key)
    return array


def expect_numbers(array: np.ndarray, name: str, key: str) -> None:
    """Raise ValueError unless the array's type is that of real numbers."""
    if array.dtype.kind not in REAL and array.size:
        raise ValueError(f"{name}: {key}: expected real numbers, got type {array.dtype}; convert them, to float32 for example")


def as_column(array: Any, name: str, key: str) -> np.ndarray:
    """A source of shape (n,) or (n, 1) as an array (n,).

    Raises:
        ValueError: another shape.
    """
    if array.shape[1:] not in ((), (1,)) or not array.shape:
        raise ValueError(f"{name}: {key}: expected shape (n,), got {array.shape}")
    return array[:].reshape(-1)


def as_lengths(lengths: Any, n: int, name: str) -> np.ndarray:
    """Lengths of episodes as int64.

    Raises:
        ValueError: anything but positive integers that sum to `n`.
    """
    values = as_array(lengths, name, "lengths")
    with np.errstate(invalid="ignore"):  # infinite and enormous numbers are unequal to what they become
        counts = values.astype(np.int64)
    whole = values.ndim == 1 and values.dtype != bool and np.array_equal(counts, values)
    if not whole or len(counts) == 0 or counts.min() < 1 or counts.max() > n or counts.sum() != n:
        got = f"{len(counts)} summing to {counts.sum()}" if whole else np.array2string(values, threshold=8)
        raise ValueError(f"{name}: lengths: expected positive integers summing to the {n} rows, got {got}")
    return counts


def check_shapes(
    name: str, observations: Any, actions: Any, rewards: Any, terminal: Any, last: Any, next_observations: Any = None
) -> None:
    """Raise ValueError unless the sources (anything with a shape) are consistent and not empty."""
    n = len(rewards)
    sources = {
        "observations": observations,
        "actions": actions,
        "rewards": rewards,
        "terminals": terminal,
        "episode ends": last,
    }
    for key, value in sources.items():
        wide = key in ("observations", "actions")
        if len(value.shape) != 1 + wide or value.shape[0] != n:
            expected = "(n, width)" if wide else "(n,)"
            advice = (
                "; a single component is a column (n, 1), and discrete actions are not supported" if key == "actions" else ""
            )
            raise ValueError(f"{name}: {key}: expected shape {expected} with n = {n}, got {value.shape}{advice}")
    if n == 0:
        raise ValueError(f"{name}: expected transitions, got none")
    check_widths(name, observations.shape[1], actions.shape[1])
    if next_observations is not None and next_observations.shape != observations.shape:
        raise ValueError(f"{name}: next_observations: expected shape {observations.shape}, got {next_observations.shape}")


def check_widths(name: str, state_dim: int, action_dim: int) -> None:
    """Raise ValueError if states or actions have no components."""
    for key, width in (("observations", state_dim), ("actions", action_dim)):
        if width == 0:
            raise ValueError(f"{name}: {key}: expected at least one number in every row, got none")


def check_environment(info: DatasetInfo, state_dim: int, action_dim: int) -> None:
    """Raise ValueError if the data name a known environment with different dimensions."""
    known = known_dimensions(info.env_id) if info.env_id else None
    if known is not None and known != (state_dim, action_dim):
        raise ValueError(
            f"{info.name}: expected state_dim = {known[0]}, action_dim = {known[1]} for {info.env_id}, got "
            f"{state_dim}, {action_dim}; specify the environment of the data (env_id, --env-id)"
        )


def check_lengths(info: DatasetInfo, last: np.ndarray, limit: int | None = None) -> None:
    """Raise ValueError if an episode has more rows than the environment's time limit plus one.

    The extra row allows for D4RL's AntMaze recorder, which counts one more. `limit` overrides the environment's own.
    """
    limit = limit or (episode_limit(info.env_id) if info.env_id else None)
    stops = np.flatnonzero(last)
    starts = np.concatenate(([0], stops[:-1] + 1))
    lengths = stops + 1 - starts
    if limit is None or lengths.max(initial=0) <= limit + 1:
        return
    number = int(np.argmax(lengths > limit + 1))
    raise ValueError(
        f"{info.name}: episode {number} (rows {starts[number]} to {stops[number]}): expected at most {limit + 1} rows (the "
        f"time limit of {info.env_id} plus one), got {lengths[number]}; an unmarked episode end would make a state of the "
        "next episode a successor: mark it in timeouts, or provide next_observations"
    )


def as_finite(block: Any, first_row: int, name: str, key: str) -> np.ndarray:
    """The rows as float32.

    Raises:
        ValueError: a number is not finite, or too large for float32.
    """
    block = np.asarray(block)
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = np.asarray(block, np.float32)
    finite = np.isfinite(numbers)
    if not finite.all():
        row = int(np.argmin(finite.reshape(len(block), -1).all(1)))
        what = "numbers that float32 can hold" if np.isfinite(block[row]).all() else "finite numbers"
        raise ValueError(f"{name}: {key}: expected {what}, got {block[row]} in row {first_row + row}")
    return numbers


def as_flags(values: np.ndarray, name: str, key: str) -> np.ndarray:
    """Flags (n,) of any storage type as bool.

    Raises:
        ValueError: a value is neither 0 nor 1.
    """
    flags = values.astype(bool)
    wrong = flags != values
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"{name}: {key}: expected 0 or 1 in every row, got {values[row]} in row {row}")
    return flags


def as_actions(
    block: Any, first_row: int, name: str, repairs: Repairs | None = None, box: ActionBox | None = None
) -> np.ndarray:
    """The rows as float32 in [-1, 1], which stands for the bounds `box` of the block's actions (default: [-1, 1]).

    Raises:
        ValueError: integers without bounds, a number that is not finite, or one outside the bounds by more than `ACTION_SLACK` of
            their half width, or `MOST_EXCESS` if it is to be repaired.
    """
    kind = np.asarray(block).dtype
    if box is None and kind.kind != "f":  # a discrete task's 0 and 1 would pass
        raise ValueError(
            f"{name}: actions: expected floating-point numbers, got {kind}, as of discrete actions, which are not supported; if "
            "they are continuous, convert them to float32, or state their bounds: action_low, action_high"
        )
    numbers, given = as_finite(block, first_row, name, "actions"), box or ActionBox()
    if not given.is_unit:
        numbers = given.to_unit(np.asarray(block)).astype(np.float32)
    if numbers.size and max(numbers.max(), -numbers.min()) > 1.0:
        outside = (np.abs(numbers) > 1.0 + (ACTION_SLACK if repairs is None else MOST_EXCESS)).any(1)
        if outside.any():
            row = int(np.argmax(outside))
            remedy = "state their bounds: action_low, action_high (--action-low, --action-high), or rescale them to [-1, 1]"
            raise ValueError(
                f"{name}: actions: expected {given}, got {np.asarray(block)[row]} in row {first_row + row}; "
                + (remedy if box is None else "state the right bounds (action_low, action_high)")
            )
        if repairs is not None:
            repairs.clip(np.abs(numbers).max(1) - 1.0)
        numbers = np.clip(numbers, -1.0, 1.0)
    return numbers


def warn_of_limit(name: str, lengths: np.ndarray, terminal: np.ndarray) -> None:
    """Warn if every episode, of these lengths, ends in a terminal row after the same number of rows: a time limit's mark.

    The last episode may be shorter, where recording ended.
    """
    whole = lengths[:-1]
    alike = len(lengths) >= FEW_EPISODES and whole[0] > 1 and lengths[-1] <= whole[0] and (whole == whole[0]).all()
    if alike and terminal[:-1].all():
        warn_caller(
            f"{name}: terminals: expected False where a time limit ends an episode, got True at the end of every one, each of "
            f"{whole[0]} rows; if that is the limit, mark these rows in timeouts (ends) alone, or their values lack what follows"
        )


def stated_box(info: DatasetInfo, action_dim: int) -> ActionBox | None:
    """The bounds that the data state for their m actions.

    Raises:
        ValueError: they have another number of components.
    """
    box = info.action_box
    if box is not None and not box.serves(action_dim):
        raise ValueError(
            f"{info.name}: action_low, action_high: expected 1 or {action_dim} numbers, as many as actions, got {len(box.low)}"
        )
    return box
