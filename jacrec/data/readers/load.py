"""Load offline data of any supported kind."""

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from jacrec.data.d4rl_files import D4RL_FILES, datasets_root, find_d4rl
from jacrec.data.download import fetch_minari, offline_instructions
from jacrec.data.fetch import DownloadError
from jacrec.data.readers.d4rl import FLAT_SUFFIXES, read_d4rl, unknown_suffix
from jacrec.data.readers.mapped import read_mapped
from jacrec.data.readers.minari import dataset_path, local_ids, read_minari
from jacrec.data.readers.minari_files import METADATA, is_complete
from jacrec.data.readers.ogbench import read_ogbench
from jacrec.data.readers.parquet import SUFFIX as PARQUET
from jacrec.data.transitions import Bound, Transitions
from jacrec.envs.ogbench import is_single_task
from jacrec.util.files import user_path


def load(
    source: str | Path,
    *,
    env_id: str | None = None,
    action_low: Bound | None = None,
    action_high: Bound | None = None,
    download: bool = True,
    repair: bool = False,
    mapping: str | Path | None = None,
) -> Transitions:
    """Transitions of a D4RL data set, a Minari data set, one of OGBench's single tasks, or a D4RL-layout .hdf5, .h5 or .npz file.

    D4RL's names (``hopper-medium-replay-v2`` and the 23 others) refer to files in $JACREC_DATA (~/.jacrec/datasets) or in
    D4RL's own folder, as stored by `jacrec data get` or by hand. OGBench's (``cube-single-play-singletask-v0``) refer to files in
    its folder ~/.ogbench/data. A Minari id is looked up on disk; if it is missing and
    `download` is True, it is requested from Minari's server. `env_id` overrides the environment named in the data; one that the
    data name as ``module:Env-v0`` is refused, as gymnasium would import the module. `repair` mends what other recorders leave
    incomplete (see `jacrec.data.readers.minari.read_minari` and `jacrec.data.readers.d4rl.read_d4rl`) and warns of it.

    Actions are mapped to [-1, 1] from their bounds `action_low` and `action_high`, () or (m,), in the environment's units. By
    default these are the bounds of a Minari data set's action space; files in D4RL's layout state none, so their actions have
    to lie in [-1, 1] already, which stands for the evaluation environment's own bounds.

    `mapping` is a YAML file, or the name neorl2 or lerobot, that says what the arrays of a file with other names are, or the columns
    of .parquet files (see `jacrec.data.readers.mapped`).

    Raises:
        FileNotFoundError: nothing of that name is stored or could be downloaded; the message lists the local data sets.
        ValueError: neither an id nor a file name, or contents that do not form transitions (see the readers).
    """
    if not isinstance(source, str | Path):
        raise ValueError(
            f"source: expected a name or a path, got {type(source).__name__}; for arrays use jacrec.data.from_arrays"
        )
    bounds = {"action_low": action_low, "action_high": action_high}
    if mapping is not None:
        return read_mapped(source, mapping, env_id=env_id, repair=repair, **bounds)
    if str(source).endswith(PARQUET):
        raise ValueError(
            f"{source}: expected a mapping of its columns, got none; write one: --mapping FILE (mapping in Python)"
        )
    if isinstance(source, Path) or source.endswith(FLAT_SUFFIXES):
        return read_d4rl(source, env_id=env_id, repair=repair, **bounds)
    if is_single_task(source):
        data = read_ogbench(source, **bounds)
        return data if env_id is None else replace(data, info=replace(data.info, env_id=env_id))
    file = find_d4rl(source)
    if file is not None:
        return read_d4rl(file, env_id=env_id, repair=repair, **bounds)
    try:
        path = dataset_path(source)
    except ValueError:
        if user_path(source).exists():
            raise ValueError(unknown_suffix(user_path(source))) from None
        raise
    if not is_complete(path):
        if source in D4RL_FILES:
            raise FileNotFoundError(_no_file_message(source))
        reason = _download(source) if download and not source.startswith("jacrec/") else "not attempted"
        if reason is not None:
            raise FileNotFoundError(_not_found_message(source, path, reason))
    return read_minari(source, env_id=env_id, repair=repair, **bounds)


def _no_file_message(name: str) -> str:
    return (
        f"{name}: expected {D4RL_FILES[name].file} in {datasets_root()}, got no file; run `jacrec data get {name}`, or "
        f"{offline_instructions(name)}"
    )


def _download(dataset_id: str) -> str | None:
    """Ask Minari's server; None if the download succeeded, otherwise the reason it failed."""
    try:
        fetch_minari(dataset_id)
    except DownloadError as error:
        return str(error)
    return None


def _not_found_message(dataset_id: str, path: Path, reason: str) -> str:
    matches = get_close_matches(dataset_id, D4RL_FILES, n=1, cutoff=0.8)
    if matches and "/" not in dataset_id:
        return f"{dataset_id}: no such data set; did you mean {matches[0]}?"
    local = ", ".join(local_ids()) or "none"
    if dataset_id.startswith("jacrec/"):
        remedy = "generate it with `jacrec data make`"
    else:
        remedy = (
            "to download it, pip install 'minari[hf]' and allow network access, or generate an embedded data set with "
            f"`jacrec data make` (download: {reason})"
        )
    what = "incomplete data set" if path.exists() else "no such data set"
    why = f" ({METADATA} is damaged, or data are missing)" if (path / METADATA).is_file() else ""
    return f"{dataset_id}: {what} at {path}{why}; local data sets: {local}; {remedy}"
