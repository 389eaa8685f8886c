"""Files whose arrays or columns have other names than D4RL's: a mapping in YAML says what is what.

    observations: [observation.state, observation.environment_state]   # side by side; or a single name
    actions: action
    rewards: next.reward
    terminals: next.success        # flags; left out: no row is terminal
    next_observations: next_obs    # left out: the next row of the episode
    episode: episode_index         # numbers of the episodes; or one of
    # ends: last                   #   flags of the last rows
    # timeouts: truncated          #   flags of last rows that are not terminal
    # starts: index                #   row numbers of the first rows
    # lengths: lengths             #   rows of each episode
    env_id: Pipeline               # these four are values, and may be left out
    action_low: -2
    action_high: 2
    scores: [-296, 751]            # returns of score 0 and 100

Without any of the five an episode ends at its terminal row.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path

import numpy as np

from jacrec.data.readers.arrays import from_flat
from jacrec.data.readers.checks import as_column, as_flags, check_shapes
from jacrec.data.readers.d4rl import Find, open_flat
from jacrec.data.readers.ends import episode_ends
from jacrec.data.readers.parquet import SUFFIX, open_parquet
from jacrec.data.readers.repair import Repairs
from jacrec.data.references import reference_by_env
from jacrec.data.transitions import Bound, DatasetInfo, Transitions, with_bounds
from jacrec.data.yaml_file import read_yaml
from jacrec.util.content import expect_content
from jacrec.util.files import user_path

ENDS = ("episode", "ends", "timeouts", "starts", "lengths")
"""what may say where episodes end"""
REMEDY = "correct the mapping"


@dataclass(frozen=True)
class Mapping:
    """Names of arrays or columns, and what a file does not say itself; see the module's docstring."""

    observations: str | list[str]
    actions: str | list[str]
    rewards: str
    terminals: str | None = None
    next_observations: str | list[str] | None = None
    episode: str | None = None
    ends: str | None = None
    timeouts: str | None = None
    starts: str | None = None
    lengths: str | None = None
    env_id: str | None = None
    action_low: float | list[float] | None = None
    action_high: float | list[float] | None = None
    scores: list[float] | None = None


def packaged_mappings() -> dict[str, Path]:
    """The mappings in the package, by name."""
    return {Path(str(x)).stem: Path(str(x)) for x in (files("jacrec.data") / "mappings").iterdir() if x.name.endswith(".yaml")}


def read_mapping(mapping: str | Path) -> Mapping:
    """The mapping in a YAML file, or one of the package's by its name.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no name or path, is damaged, or has unknown or missing entries.
    """
    packaged = packaged_mappings()
    if not isinstance(mapping, str | Path):
        raise ValueError(
            f"mapping: expected a YAML file or one of {', '.join(sorted(packaged))}, got {type(mapping).__name__}; write it to a file, "
            "or give the arrays themselves to jacrec.data.from_arrays"
        )
    path = packaged.get(str(mapping), user_path(mapping))
    if not path.is_file():
        raise FileNotFoundError(f"--mapping: expected a YAML file or one of {', '.join(sorted(packaged))}, got {mapping}")
    content = read_yaml(path, REMEDY)
    expect_content(content, Mapping, path, REMEDY)
    known = [f.name for f in fields(Mapping)]
    wrong = [name for name in content if name not in known] or [x for x in known[:3] if x not in content]
    if wrong:
        raise ValueError(
            f"{path}: expected observations, actions, rewards and any of {', '.join(known[3:])}, got "
            f"{', '.join(content)}: {wrong[0]} is {'unknown' if wrong[0] in content else 'missing'}; {REMEDY}"
        )
    found = Mapping(**content)
    given = [name for name in ENDS if getattr(found, name) is not None]
    if len(given) > 1:
        raise ValueError(f"{path}: expected at most one of {', '.join(ENDS)}, got {' and '.join(given)}; {REMEDY}")
    if found.scores is not None and (len(found.scores) != 2 or not found.scores[0] < found.scores[1]):
        raise ValueError(f"{path}: scores: expected the returns of score 0 and 100, got {found.scores}; {REMEDY}")
    return found


def read_mapped(
    path: str | Path,
    mapping: str | Path,
    *,
    env_id: str | None = None,
    action_low: Bound | None = None,
    action_high: Bound | None = None,
    repair: bool = False,
) -> Transitions:
    """Read a .npz, .hdf5, .h5 or .parquet file, or a folder of the latter, by a mapping.

    The arguments are those of `jacrec.data.load`; `env_id` and bounds override the mapping's.

    Raises:
        FileNotFoundError: no such file or mapping.
        ValueError: the file lacks an array that the mapping names, or its contents do not form transitions.
    """
    path, spec = user_path(path), read_mapping(mapping)
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a file, or a folder of Parquet files, got nothing of that name")
    opened: AbstractContextManager = open_parquet(path) if path.is_dir() or path.suffix == SUFFIX else open_flat(path)
    with opened as (find, _):
        source = _Source(path, find)
        states, actions = source.wide(spec.observations), source.wide(spec.actions)
        rewards = source.column(spec.rewards)
        terminal = np.zeros(len(rewards), bool) if spec.terminals is None else source.flags(spec.terminals)
        following = None if spec.next_observations is None else source.wide(spec.next_observations)
        check_shapes(path.stem, states, actions, rewards, terminal, terminal, following)
        last = _last_rows(spec, source, states, terminal, following)
    if not last.any():
        raise ValueError(
            f"{path}: expected the last row of each episode to be marked, got none in {len(last)} rows; name one of "
            f"{', '.join(ENDS)} in the mapping"
        )
    repairs = Repairs() if repair else None
    if repairs is not None:
        (states, actions, following), rewards, terminal, last = repairs.rows(
            [states, actions, following], rewards, terminal, last
        )
    found = from_flat(
        states, actions, rewards, terminal, last, _info(path, spec, env_id, action_low, action_high), following, repairs
    )
    if repairs is not None:
        repairs.report(found.info.name)
    return found


@dataclass(frozen=True)
class _Source:
    """The arrays of a file, by name."""

    path: Path
    find: Find

    def array(self, name: str) -> np.ndarray:
        found = self.find(name)
        if found is None:
            raise ValueError(f"{self.path}: expected {name!r}, as the mapping says, got none; {REMEDY}")
        return found[:]

    def wide(self, names: str | list[str]) -> np.ndarray:
        parts = [self.array(name) for name in ([names] if isinstance(names, str) else names)]
        if not parts or len({len(part) for part in parts}) > 1:
            raise ValueError(
                f"{self.path}: {names}: expected arrays of one length, got {[part.shape for part in parts]}; {REMEDY}"
            )
        return np.concatenate([part.reshape(len(part), 1) if part.ndim == 1 else part for part in parts], axis=-1)

    def column(self, name: str) -> np.ndarray:
        return as_column(self.array(name), str(self.path), name)

    def flags(self, name: str) -> np.ndarray:
        return as_flags(self.column(name), str(self.path), name)


def _last_rows(
    spec: Mapping, source: _Source, states: np.ndarray, terminal: np.ndarray, following: np.ndarray | None
) -> np.ndarray:
    """(n,) bool, the last rows of the episodes."""
    n, name = len(terminal), str(source.path)
    if spec.timeouts is not None:
        return terminal | source.flags(spec.timeouts)
    if spec.ends is not None:
        return episode_ends(name, states, terminal, ends=source.column(spec.ends), next_observations=following)
    if spec.lengths is not None:
        return episode_ends(name, states, terminal, lengths=source.array(spec.lengths).reshape(-1))
    if spec.starts is not None:
        starts = source.array(spec.starts).reshape(-1)
        lengths = np.diff(np.append(starts, n))
        if not np.array_equal(starts[:1], [0]) or starts.dtype.kind not in "iu" or lengths.min() < 1:
            raise ValueError(f"{name}: {spec.starts}: expected row numbers from 0 on, in order, got {starts[:3]}; {REMEDY}")
        return episode_ends(name, states, terminal, lengths=lengths)
    if spec.episode is not None:
        number = source.column(spec.episode)
        last = np.append(number[1:] != number[:-1], True)
        if last.sum() != len(np.unique(number)):
            raise ValueError(
                f"{name}: {spec.episode}: expected the rows of an episode one after another, got {len(np.unique(number))} episodes "
                f"in {int(last.sum())} pieces; sort the rows"
            )
        return last
    return terminal.copy()


def _info(path: Path, spec: Mapping, env_id: str | None, low: Bound | None, high: Bound | None) -> DatasetInfo:
    env_id = env_id or spec.env_id
    reference = reference_by_env(env_id) if env_id else None
    refs = spec.scores or ((reference.ref_min, reference.ref_max) if reference else (None, None))
    if low is None and high is None:
        low, high = spec.action_low, spec.action_high
    return with_bounds(DatasetInfo(path.stem, env_id, *refs, source=path.name), low, high)
