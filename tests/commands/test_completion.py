"""Completion scripts offer verbs, options and choices, without starting Python."""

import shutil
import subprocess

import pytest

from jacrec import cli
from jacrec.commands.completion import script

DRIVER = """
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _jacrec; printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash():
    """What bash offers after some words; the last of them is being typed."""
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    text = script("bash")

    def offered(*words):
        command = ["bash", "--norc", "-c", text + DRIVER, "bash", "jacrec", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, env={}).stdout.split()

    return offered


def test_verbs_are_offered(bash):
    assert bash("") == list(cli.VERBS)
    assert bash("tr") == ["train"]
    assert bash("data", "") == ["get", "list", "make", "show"]


def test_options_are_offered(bash):
    assert {"--version", "--print-completion"} <= set(bash("-"))
    assert bash("eval", "somewhere", "--mpc.hor") == ["--mpc.horizon"]
    assert bash("data", "make", "hopper", "--ph") == ["--physics"]
    assert {"--out", "--rebrac.tau", "--dynamics.kind"} <= set(bash("train", "--"))


def test_choices_are_offered(bash):
    assert bash("data", "make", "--physics", "") == ["d4rl", "native"]
    assert bash("train", "--stages", "re") == ["rebrac", "reward"]
    assert bash("--print-completion", "") == list(cli.SHELLS)


def test_a_positional_argument_is_left_to_the_shell(bash):
    """`complete -o default` then offers files."""
    assert bash("eval", "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_is_correct_for_its_shell(shell, capsys):
    assert cli.main(["--print-completion", shell]) == 0
    text = capsys.readouterr().out
    assert "rebrac.batch-size" in text
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize("args", [[], ["tcsh"], ["bash", "zsh"]])
def test_another_shell_is_an_error(args, capsys):
    assert cli.main(["--print-completion", *args]) == cli.USAGE_ERROR
    assert "expected one of bash, zsh, fish" in capsys.readouterr().err
