"""Checks of options: settings that would have no effect are rejected."""

from collections.abc import Collection, Sequence


def refuse_unused(args: Sequence[str], group: str, used: Collection[str], by: str) -> None:
    """Reject options --GROUP.NAME whose name is not in `used`.

    Args:
        by: what uses the settings, for the message.

    Raises:
        ValueError: `args` holds such an option.
    """
    prefix = f"--{group}."
    for arg in args:
        name = arg.removeprefix(prefix).split("=")[0].replace("-", "_")
        if arg.startswith(prefix) and name.removeprefix("no_") not in used and name not in used:
            option = prefix + name.replace("_", "-")
            raise ValueError(f"{option}: expected a setting of {by}, got one that has no effect there; leave it out")
