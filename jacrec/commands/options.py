"""Options that a command line names: what is asked for and would have no effect is refused."""

from collections.abc import Collection, Sequence


def refuse_unused(args: Sequence[str], group: str, used: Collection[str], by: str) -> None:
    """ValueError where `args` sets --GROUP.NAME for a name that is not among the `used` ones; `by` says who would use it."""
    prefix = f"--{group}."
    for arg in args:
        name = arg.removeprefix(prefix).split("=")[0].replace("-", "_")
        if arg.startswith(prefix) and name.removeprefix("no_") not in used and name not in used:
            option = prefix + name.replace("_", "-")
            raise ValueError(f"{option}: expected a setting of {by}, which takes no notice of this one; leave it out")
