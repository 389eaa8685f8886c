"""Policies and critics in files: the library is recognised by what the file holds."""

import io
import json
import pickle
import zipfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from jacrec.adapters.cleanrl import from_cleanrl
from jacrec.adapters.corl import from_corl
from jacrec.adapters.d3rlpy import from_d3rlpy
from jacrec.adapters.parts import Parts
from jacrec.adapters.sb3 import from_sb3
from jacrec.adapters.weights import expect_whole, load_weights, reason_of
from jacrec.control.storage import load
from jacrec.envs.actions import ActionBox
from jacrec.util.files import user_path

Kind = Literal["jacrec", "sb3", "d3rlpy", "corl", "cleanrl"]
RECORDED = ("jacrec", "sb3", "d3rlpy")
"""kinds of files that record γ"""
SB3 = {
    "stable_baselines3.sac": ("stable_baselines3", "SAC"),
    "stable_baselines3.td3": ("stable_baselines3", "TD3"),  # DDPG's too
    "sb3_contrib.tqc": ("sb3_contrib", "TQC"),
}
"""module and class of the algorithms by where their policies are defined"""


def from_file(
    path: str | Path,
    *,
    vec_normalize: str | Path | None = None,
    state_mean: Any = None,
    state_std: Any = None,
    max_action: float = 1.0,
    discount: float | None = None,
    action_box: ActionBox | None = None,
) -> Parts:
    """Policy and critic in a file of Stable-Baselines3, d3rlpy, CORL, CleanRL, or of `jacrec.save`.

    Files of Stable-Baselines3 (`model.save`) and d3rlpy (`algo.save`) are read by these libraries, which have to be installed and
    execute what is pickled in them: open only those that you trust. The others hold tensors, and nothing in them is executed.

    Args:
        path: model.zip, model.d3, checkpoint_*.pt of CORL's TD3+BC, a .cleanrl_model, or a controller's .safetensors.
        vec_normalize: Stable-Baselines3: file of the `VecNormalize` that the model was trained with (`venv.save`), pickled as well.
        state_mean, state_std, max_action: CORL: as of `from_corl`.
        discount: γ of a file that does not record it, CORL's and CleanRL's; default: 0.99, theirs.
        action_box: what -1 and 1 stand for in the data that the policy is used with, `data.info.action_box`. A controller's file
            does not say it; the others do.

    Raises:
        FileNotFoundError: no file there.
        ValueError: another file, a library that is not installed, an argument that has no use for this one, or a policy of another
            action box.
    """
    ActionBox.expect(action_box)
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no policy at {path}: expected a file of Stable-Baselines3, d3rlpy, CORL, CleanRL or jacrec.save"
        )
    kind, content = _recognised(path)
    if kind in RECORDED and discount is not None:
        raise ValueError(f"discount: expected none for {path}, which records it, got {discount}; leave it out")
    if kind != "sb3" and vec_normalize is not None:
        raise ValueError(f"vec_normalize: expected none but for a model of Stable-Baselines3, got {vec_normalize} for {path}")
    if kind != "corl" and not (state_mean is None and state_std is None and max_action == 1.0):
        raise ValueError(f"state_mean, state_std, max_action: expected none but for a checkpoint of CORL, got some for {path}")
    gamma = 0.99 if discount is None else discount
    if kind == "jacrec":
        return _controller(path, action_box or ActionBox())
    if kind == "sb3":
        statistics = None if vec_normalize is None else _unpickled(user_path(vec_normalize), "VecNormalize")
        parts = from_sb3(_load_sb3(path), statistics)
    elif kind == "d3rlpy":
        parts = from_d3rlpy(_read("d3rlpy", path, lambda library: _load_d3rlpy(library, path)))
    elif kind == "corl":
        parts = from_corl(content, state_mean=state_mean, state_std=state_std, max_action=max_action, discount=gamma)
    else:
        parts = from_cleanrl(content, discount=gamma)
    if action_box is not None and not action_box.same_as(parts.action_box):
        raise ValueError(
            f"{path}: expected a policy whose actions in [-1, 1] stand for {action_box}, as in the data, got one for "
            f"{parts.action_box}; state the bounds that it was trained with where the data are read: {parts.action_box.arguments()}"
        )
    return parts


def _recognised(path: Path) -> tuple[Kind, Any]:
    """Whose file it is, and the tensors in it if `torch.save` wrote it."""
    if path.suffix == ".safetensors":
        return "jacrec", None
    if path.suffix == ".d3":
        return "d3rlpy", None
    with suppress(Exception), zipfile.ZipFile(path) as archive:  # a file that is damaged or unreadable is so below as well
        if "_stable_baselines3_version" in archive.namelist():
            return "sb3", None
    content = load_weights(path)
    if isinstance(content, dict) and "q_funcs" in content:
        raise ValueError(
            f"{path}: expected what d3rlpy's algo.save wrote, got weights alone, of save_model; write it with algo.save"
        )
    return "corl" if isinstance(content, dict) else "cleanrl", content


def _controller(path: Path, box: ActionBox) -> Parts:
    """The policy and critic of a controller, the policy as it was before it thought."""
    mpc = load(path)
    policy: Any = getattr(mpc.base, "template", mpc.base)  # of a batch: its rows began alike
    d, m = policy.state_dim, policy.action_dim
    return Parts(policy, mpc.world.critic, mpc.world.discount, box, d, m)  # pyright: ignore[reportArgumentType]


def _load_sb3(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            module = str(json.loads(archive.read("data"))["policy_class"]["__module__"])
    except Exception as error:  # whatever a damaged archive causes
        raise ValueError(
            f"{path}: expected a model of Stable-Baselines3, cannot read it ({reason_of(error)}); save it again"
        ) from error
    for family, (package, name) in SB3.items():
        if module.startswith(family):
            return _read(package, path, lambda library, name=name: getattr(library, name).load(path, device="cpu"))
    raise ValueError(
        f"{path}: expected a model of SAC, TD3, DDPG or TQC, got one with a policy of {module}; for a policy class of your own "
        "load the model in Python, and use from_sb3 and train_world"
    )


def _load_d3rlpy(library: Any, path: Path) -> Any:
    """The algorithm in a pickle around an archive of torch, of which d3rlpy compares no checksum."""
    expect_whole(io.BytesIO(pickle.loads(path.read_bytes())["torch"]))
    return library.load_learnable(str(path))


def _read(package: str, path: Path, read: Any) -> Any:
    """What a library reads from its file."""
    try:
        library = import_module(package)
    except ImportError as error:
        name = package.replace("_", "-")
        raise ValueError(
            f"{path}: expected an installed {name} to read it, got an error ({error}); pip install {name}"
        ) from None
    try:
        return read(library)
    except Exception as error:  # whatever a malformed pickle or another version's causes
        raise ValueError(
            f"{path}: expected a model that {package} can read, got {type(error).__name__}: {reason_of(error)}"
        ) from error


def _unpickled(path: Path, name: str) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no statistics at {path}; write them with venv.save(path)")
    try:
        found = pickle.loads(path.read_bytes())
    except Exception as error:  # whatever a malformed pickle causes
        raise ValueError(f"{path}: expected a pickled {name}, got {type(error).__name__}: {reason_of(error)}") from error
    if type(found).__name__ != name:
        raise ValueError(f"{path}: expected a {name}, which venv.save(path) writes, got {type(found).__name__}")
    return found
