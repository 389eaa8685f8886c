"""The command line: `jacrec VERB ...`, also `python -m jacrec`. Verbs are imported when they are called."""

import shlex
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from jacrec import __version__
from jacrec.commands import SHELLS, VERBS
from jacrec.util.files import user_path
from jacrec.util.signals import is_interrupt, keep_interrupts

USAGE_ERROR, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        The exit code: 0 success, 1 a check or job failed, 2 invalid arguments or settings, 130 interrupted.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0
    if args[0] == "--version":
        print(f"jacrec {__version__}")
        return 0
    if args[0] == "--print-completion":
        return _print_completion(args[1:])
    verb, rest = args[0], list(map(_at_home, args[1:]))
    if verb not in VERBS:
        return _fail(f"verb: expected one of {', '.join(VERBS)}, got {verb!r}; see `jacrec --help`")
    if argv is None:
        keep_interrupts(signal.SIGINT)
    try:
        return import_module(f"jacrec.commands.{verb}").run(rest)
    except (KeyboardInterrupt, RuntimeError) as error:
        if not is_interrupt(error):
            raise
        if argv is None:  # the process ends here, and another Ctrl-C would only print a traceback
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        print(f"\ninterrupted; to resume: jacrec {shlex.join(args)}", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, FloatingPointError) as error:
        return _fail(_message(error))
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has closed it
        sys.stdout = None
        return 0
    except OSError as error:  # jacrec's own are whole sentences, the system's are a code and a path
        where = error.filename or "files"
        return _fail(_message(error) if error.errno is None else f"{where}: {error.strerror}; choose another path")


def usage() -> str:
    """The text of `jacrec --help`: one line per verb."""
    verbs = [f"  {verb:<9}{text}" for verb, text in VERBS.items()]
    options = [
        "  --version",
        f"  --print-completion {{{','.join(SHELLS)}}}   print a completion script for this shell",
    ]
    return "\n".join(["usage: jacrec VERB ...        (`jacrec VERB --help` describes a verb)", "", *verbs, "", *options])


def _at_home(arg: str) -> str:
    """An argument with `~` expanded, which shells leave alone in --option=~/path and in quotes."""
    option, given, value = arg.partition("=") if arg.startswith("--") else ("", "", arg)
    return f"{option}{given}{user_path(value)}" if value.startswith("~") else arg


def _print_completion(args: Sequence[str]) -> int:
    if len(args) != 1 or args[0] not in SHELLS:
        return _fail(f"--print-completion: expected one of {', '.join(SHELLS)}, got {shlex.join(args) or 'nothing'}")
    from jacrec.commands.completion import script

    print(script(args[0]))
    return 0


def _message(error: Exception) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def _fail(message: str) -> int:
    print(f"jacrec: {message}", file=sys.stderr)
    return USAGE_ERROR
