"""Shell completion: a script with all verbs, their options and the options' choices.

Writing it takes seconds, since every verb is imported. Completing with it does not start Python.
"""

import ast
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from typing import Annotated, Any, NamedTuple, Union

import tyro
from tyro.conf import OmitSubcommandPrefixes, subcommand

from jacrec.commands import SHELLS, VERBS

BASH = """\
_jacrec() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} at="" words=""
    if [[ $COMP_CWORD -gt 1 && ${{COMP_WORDS[1]}} != -* ]]; then at=${{COMP_WORDS[1]}}; fi
    if [[ $COMP_CWORD -gt 2 && ({groups}) ]]; then at="$at ${{COMP_WORDS[2]}}"; fi
    case "$at $prev" in
{choices}
    esac
    if [[ -z $words && $cur == -* ]]; then case "$at" in
{options}
    esac; fi
    if [[ -z $words ]]; then case "$at" in
{verbs}
    esac; fi
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o default -F _jacrec jacrec
"""
ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


class Option(NamedTuple):
    """A flag, its help text, and its choices: none for a flag without value, or with any."""

    flag: str
    text: str
    choices: tuple[str, ...]
    valued: bool


class Context(NamedTuple):
    """What can follow `jacrec PATH`, with each verb's help text."""

    path: str
    verbs: dict[str, str]
    options: list[Option]


def script(shell: str) -> str:
    """The completion script of `jacrec` for "bash", "zsh" or "fish"."""
    commands = {verb: import_module(f"jacrec.commands.{verb}").COMMAND for verb in VERBS}
    top, *others = _contexts("", _table(commands))
    own = [Option("--version", "print the version", (), False), Option("--print-completion", "print a script", SHELLS, True)]
    contexts = [Context("", VERBS, [*top.options, *own]), *others]
    return _fish(contexts) if shell == "fish" else (ZSH if shell == "zsh" else "") + _bash(contexts)


def _table(commands: dict[str, Any]) -> dict[str, Any]:
    """The table of options that tyro writes into a completion script of its own."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        tyro.cli(_any_of(commands), prog="jacrec", args=["--tyro-print-completion", "bash"])
    found = re.search(r"(?m)^COMPLETION_SPEC = (.*)$", output.getvalue())
    if found is None:
        raise ValueError("completion: expected a table in tyro's completion script, got none; install tyro 1.0")
    return ast.literal_eval(found[1])


def _any_of(commands: dict[str, Any]) -> Any:
    """The type that tyro parses as one of these subcommands; a dictionary among them has subcommands of its own."""
    constructors = {name: _group(command) if isinstance(command, dict) else command for name, command in commands.items()}
    return Union[tuple(Annotated[Any, subcommand(name, constructor=made)] for name, made in constructors.items())]  # noqa: UP007


def _group(commands: dict[str, Any]) -> Any:
    def group(verb):
        return verb

    group.__annotations__ = {"verb": OmitSubcommandPrefixes[_any_of(commands)]}
    return group


def _contexts(path: str, table: dict[str, Any]) -> Iterator[Context]:
    verbs, options = table["subcommands"], []
    for row in table["options"]:
        text = " ".join(row["description"].rpartition("• ")[2].split())  # what stands before is the type of the value
        choices, valued = tuple(map(str, row.get("choices", ()))), row["type"] not in ("flag", "boolean")
        options += [Option(flag, text, choices, valued) for flag in row["flags"]]
    yield Context(path, {name: inner["description"] for name, inner in verbs.items()}, options)
    for name, inner in verbs.items():
        yield from _contexts(f"{path} {name}".strip(), inner)


def _bash(contexts: list[Context]) -> str:
    choices = {f"{c.path} {x.flag}": x.choices for c in contexts for x in c.options if x.choices}
    options = {c.path: [x.flag for x in c.options] for c in contexts}
    verbs = {c.path: [*c.verbs] for c in contexts if c.verbs}
    groups = " || ".join(f'"$at" == {path}' for path in verbs if path)
    cases = [
        "\n".join(f"        {shlex.quote(path)}) words={shlex.quote(' '.join(words))} ;;" for path, words in part.items())
        for part in (choices, options, verbs)
    ]
    return BASH.format(groups=groups, choices=cases[0], options=cases[1], verbs=cases[2])


def _fish(contexts: list[Context]) -> str:
    lines = []
    for c in contexts:
        seen = [f"__fish_seen_subcommand_from {verb}" for verb in c.path.split()] or ["__fish_use_subcommand"]
        inner = [f"not __fish_seen_subcommand_from {' '.join(c.verbs)}"] if c.path and c.verbs else []
        start = f"complete -c jacrec -n {shlex.quote('; and '.join(seen + inner))}"
        lines += [f"{start} -f -a {verb} -d {shlex.quote(text)}" for verb, text in c.verbs.items()]
        for x in c.options:
            name = f"-l {x.flag[2:]}" if x.flag.startswith("--") else f"-s {x.flag[1:]}"
            value = f" -x -a {shlex.quote(' '.join(x.choices))}" if x.choices else " -r" if x.valued else ""
            lines.append(f"{start} {name}{value} -d {shlex.quote(x.text)}")
    return "\n".join(lines) + "\n"
