"""Shell blocks: verbs, options, settings, scripts, make targets and extras exist. Nothing is run."""

import inspect
import re
import shlex
import tomllib
from importlib import import_module

import pytest
import tyro

from jacrec.commands import SHELLS, VERBS
from tests import ROOT
from tests.docs.pages import PAGES, blocks

BLOCKS = [block for page in PAGES for block in blocks(page, "bash")]
OTHERS = {"cd", "git", "source"}
"""commands that are not ours"""


def commands(code):
    """The commands of a block as lists of words, without comments, redirections and directories of programs."""
    joined = code.replace("\\\n", " ")
    for line in joined.splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = min([words.index(sign) for sign in ("&&", "||", "|", ";") if sign in words], default=len(words))
            command, words = words[:end], words[end + 1 :]
            command = [word for word in command if not re.fullmatch(r"[A-Z_]+=\S*", word)]
            if ">" in command:
                command = command[: command.index(">")]
            if command:
                yield [command[0].rsplit("/", 1)[-1], *command[1:]]


def check_jacrec(args):
    if args[0] in ("--version", "--help"):
        assert len(args) == 1
    elif args[0] == "--print-completion":
        assert args[1] in SHELLS
    else:
        assert args[0] in VERBS
        command, rest = import_module(f"jacrec.commands.{args[0]}").COMMAND, args[1:]
        if isinstance(command, dict):  # verbs of its own
            command, rest = command[rest[0]], rest[1:]
        if inspect.isfunction(command):  # which tyro would call
            command, rest = settings_of(command), rest
        tyro.cli(command, args=rest)


def settings_of(function):
    """A function with the same options that does nothing."""

    def nothing(**options):
        return options

    nothing.__signature__ = inspect.signature(function)
    nothing.__annotations__ = {**function.__annotations__, "return": dict}
    nothing.__doc__ = function.__doc__
    return nothing


def check_python(args):
    if args[0] == "-m" and args[1] in ("pytest", "venv"):
        return
    path = f"{args[1].replace('.', '/')}.py" if args[0] == "-m" else args[0]
    source = (ROOT / path).read_text(encoding="utf-8")
    for option in args[1:]:
        if option.startswith("--"):
            name = option[2:].split("=")[0]
            assert f'"{option.split("=")[0]}"' in source or re.search(rf"\b{name.replace('-', '_')}:", source), option


def check_make(args):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in args:
        name = target.split("=")[0]
        assert re.search(rf"^{name}( \?)?[:=]" if "=" in target else rf"^{name}:", makefile, re.MULTILINE), target


def check_pip(args):
    assert args[0] == "install"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for found in re.findall(r"(?:jacrec|\.)\[([\w,-]+)\]", " ".join(args)):
        assert set(found.split(",")) <= set(extras), found


CHECKS = {"jacrec": check_jacrec, "python": check_python, "make": check_make, "pip": check_pip}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page}:{block.line}")
def test_commands_exist(block):
    found = list(commands(block.code))
    assert found
    for program, *args in found:
        if program == "pre-commit" or program in OTHERS:
            continue
        assert program in CHECKS, f"{block.page}: {program} is not checked"
        try:
            CHECKS[program](args)
        except SystemExit as stop:
            pytest.fail(f"{block.page}: {program} {shlex.join(args)}: {stop}")


@pytest.mark.parametrize("page", PAGES)
def test_a_report_is_of_an_evaluation_that_the_page_has_made(page):
    calls = [args for block in blocks(page, "bash") for program, *args in commands(block.code) if program == "jacrec"]
    made = [parsed(args) for args in calls if args[0] == "eval"]
    folders = {x.run: [y.out or (y.run / "tuned" if y.config.tuned else y.run) for y in made if y.run == x.run] for x in made}
    for asked in (parsed(args) for args in calls if args[0] == "report"):
        if asked.folder in folders:
            assert (asked.evaluation or asked.folder) in folders[asked.folder], page


def parsed(args):
    return tyro.cli(import_module(f"jacrec.commands.{args[0]}").COMMAND, args=args[1:])


def test_there_are_shell_blocks():
    assert len(BLOCKS) >= 15


@pytest.mark.parametrize(
    "line",
    [
        "jacrec trian x",
        "jacrec train DATA --rebrac.update 3",
        "jacrec data make hopper mediocre",
        "jacrec eval RUN --mpc.units parsec",
        "make demonstration",
        "python benchmarks/decision_speed.py --horizons 3",
        "pip install '.[mazes]'",
    ],
)
def test_a_wrong_command_is_found(line, capsys):
    ((program, *args),) = commands(line)
    with pytest.raises((AssertionError, SystemExit, ValueError)):
        CHECKS[program](args)
