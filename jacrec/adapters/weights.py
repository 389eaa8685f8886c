"""State dicts, and files of them that torch.save wrote."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from jacrec.util.files import user_path


def expect_states(found: Mapping[str, Any], form: str) -> None:
    """ValueError unless every entry is a state dict.

    Args:
        form: what they are, for the message.
    """
    for name, state in found.items():
        if not isinstance(state, Mapping):
            raise ValueError(f"{name}: expected {form}, got {type(state).__name__}; pass the module's state_dict()")


def load_weights(path: str | Path) -> Any:
    """The tensors in a file of torch.save, on the CPU. Nothing in it is executed.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or holds other objects than tensors, numbers and containers.
    """
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    content = io.BytesIO(path.read_bytes())  # an archive that is cut short looks like a disk that fails
    try:
        with warnings.catch_warnings():  # of a pickle's protocol
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a malformed pickle causes
        # torch advises to load other objects by executing what is pickled with them
        other = "weights_only" in str(error) or "Weights only" in str(error)
        reason = "other objects than tensors" if other else next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{path}: expected tensors that torch.save wrote, got something else ({reason}); save the modules' state_dict() alone"
        ) from None
