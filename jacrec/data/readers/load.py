"""One way in for every kind of offline data.

load(source, *, env_id=None, download=True) -> Transitions
"""

from difflib import get_close_matches
from pathlib import Path

from jacrec.data.d4rl_files import D4RL_FILES, datasets_root, find_d4rl
from jacrec.data.download import alternatives, fetch_minari
from jacrec.data.fetch import DownloadError
from jacrec.data.readers.d4rl import FLAT_SUFFIXES, read_d4rl
from jacrec.data.readers.minari import dataset_path, is_complete, local_ids, read_minari
from jacrec.data.transitions import Transitions


def load(source: str | Path, *, env_id: str | None = None, download: bool = True) -> Transitions:
    """Transitions of one of D4RL's data sets, of a Minari id, or of a D4RL-layout .hdf5, .h5 or .npz file.

    D4RL's names (``hopper-medium-replay-v2`` and the 23 others) stand for files in $JACREC_DATA (~/.jacrec/datasets) or in
    D4RL's own folder, where `jacrec data get` or you put them. A Minari id is looked up on disk; if it is not there and
    `download` is True, Minari's server is asked. `env_id` overrides the environment that the data name.

    Raises:
        FileNotFoundError: nothing of that name here, nor to be had; lists what is here.
        ValueError: neither an id nor a file name, or contents that do not make transitions (see the readers).
    """
    if isinstance(source, Path) or source.endswith(FLAT_SUFFIXES):
        return read_d4rl(source, env_id=env_id)
    file = find_d4rl(source)
    if file is not None:
        return read_d4rl(file, env_id=env_id)
    path = dataset_path(source)
    if not is_complete(path):
        if source in D4RL_FILES:
            raise FileNotFoundError(_no_file(source))
        reason = _download(source) if download and not source.startswith("jacrec/") else "not asked"
        if reason is not None:
            raise FileNotFoundError(_not_found(source, path, reason))
    return read_minari(source, env_id=env_id)


def _no_file(name: str) -> str:
    return (
        f"{name}: no file {D4RL_FILES[name].file} in {datasets_root()}; fetch it with `jacrec data get {name}`, or "
        f"{alternatives(name)}"
    )


def _download(dataset_id: str) -> str | None:
    """Ask Minari's server; None when the data set has arrived, else why not."""
    try:
        fetch_minari(dataset_id)
    except DownloadError as error:
        return str(error)
    return None


def _not_found(dataset_id: str, path: Path, reason: str) -> str:
    near = get_close_matches(dataset_id, D4RL_FILES, n=1, cutoff=0.8)
    if near and "/" not in dataset_id:
        return f"{dataset_id}: no such data set; did you mean {near[0]}?"
    here = ", ".join(local_ids()) or "none"
    if dataset_id.startswith("jacrec/"):
        remedy = "make it with `jacrec data make`"
    else:
        remedy = (
            "to download, pip install 'minari[hf]' and allow network access, or make an embedded set with "
            f"`jacrec data make` (download: {reason})"
        )
    what = "a data set that is not complete" if path.exists() else "no such data set"
    return f"{dataset_id}: {what} at {path}; local data sets: {here}; {remedy}"
