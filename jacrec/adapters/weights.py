"""State dicts, and files of them that torch.save wrote."""

import io
import warnings
import zipfile
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
        expect_whole(content)
        content.seek(0)
        with warnings.catch_warnings():  # of a pickle's protocol
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a malformed pickle causes
        raise ValueError(
            f"{path}: expected tensors that torch.save wrote, got something else ({reason_of(error)}); save the modules' "
            "state_dict() alone"
        ) from None


def expect_whole(content: io.BytesIO) -> None:
    """Compare the entries of a torch.save archive with their checksums, which torch.load does not.

    Content that is no archive, as torch wrote before 1.6, has none; entries that were written without have 0.

    Raises:
        zipfile.BadZipFile: an entry or the archive is damaged.
    """
    if not content.getvalue().startswith(b"PK\x03\x04"):
        return
    with zipfile.ZipFile(content) as archive:
        for entry in archive.infolist():
            if entry.CRC:
                archive.read(entry)


def reason_of(error: Exception) -> str:
    """What a library says of a file it cannot read: one line, without torch's advice to execute what is pickled in it."""
    if "weights_only" in str(error) or "Weights only" in str(error):
        return "other objects than tensors"
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{first} {others[0]}" if first.endswith(":") and others else first
