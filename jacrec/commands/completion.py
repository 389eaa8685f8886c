"""Completion scripts for shells, with all verbs and their options.

Writing one takes seconds, since it imports every verb. Completing with it does not start jacrec.
"""

import contextlib
import io
from importlib import import_module
from typing import Annotated, Any, Union

import tyro
from tyro.conf import OmitSubcommandPrefixes, subcommand

from jacrec.cli import VERBS


def script(shell: str) -> str:
    """The completion script of `jacrec` for "bash", "zsh" or "fish"."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        tyro.cli(_one_of(_commands()), prog="jacrec", args=["--tyro-print-completion", shell])
    return output.getvalue()


def _commands() -> dict[str, Any]:
    """Verb -> what tyro reads its options from."""
    return {verb: import_module(f"jacrec.commands.{verb}").COMMAND for verb in VERBS}


def _one_of(commands: dict[str, Any]) -> Any:
    """A type whose values are given by one of these subcommands; a dictionary among them is a further choice."""
    choices = []
    for name, command in commands.items():
        if isinstance(command, dict):
            command = _group(command)
        choices.append(Annotated[Any, subcommand(name, constructor=command, prefix_name=False)])
    return Union[tuple(choices)]  # noqa: UP007


def _group(commands: dict[str, Any]) -> Any:
    def group(verb):
        return verb

    group.__annotations__ = {"verb": OmitSubcommandPrefixes[_one_of(commands)]}
    return group
