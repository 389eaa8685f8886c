"""The command line: `jacrec VERB ...`, also `python -m jacrec`."""

import shlex
import sys
from collections.abc import Sequence
from importlib import import_module

VERBS = {
    "data": "make, get, list and show offline data sets",
    "train": "train policy, critic, world model and reward model on a data set",
    "rehearse": "let ways to think play imagined episodes in a run's world model; the best may act, or none",
    "eval": "play base policy, MPC and its control without a world model on the same seeds",
    "deploy": "play MPC and refresh its models from what happens, resumable",
    "live": "play one episode in wall-clock time, thinking within a deadline",
    "sweep": "train and play a study: tasks × seeds × settings, resumable",
    "report": "write report.md with tables and plots, for an evaluated run or a whole study",
    "demo": "all of that on embedded data, in minutes",
    "bench": "run the benchmarks of a checkout",
    "compile": "compile a GPU's kernels for a run ahead of its first decision",
    "doctor": "check this installation, each problem with its remedy",
}
USAGE_ERROR, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code: 0 done, 1 checks failed, 2 an error in what was asked, 130 interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0
    if args[0] == "--version":
        from importlib.metadata import version

        print(f"jacrec {version('jacrec')}")
        return 0
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        return _fail(f"verb: expected one of {', '.join(VERBS)}, got {verb!r}; `jacrec --help` explains them")
    try:
        return import_module(f"jacrec.commands.{verb}").run(rest)
    except KeyboardInterrupt:
        print(f"\ninterrupted; to go on: jacrec {shlex.join(args)}", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, FloatingPointError) as error:
        return _fail(_told(error))
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.stdout = None
        return 0
    except OSError as error:  # ours are whole sentences, the system's are a code and a path
        where = error.filename or "files"
        return _fail(_told(error) if error.errno is None else f"{where}: {error.strerror}; choose another path")


def usage() -> str:
    """The verbs, one per line."""
    lines = [f"  {verb:<9}{text}" for verb, text in VERBS.items()]
    return "\n".join(["usage: jacrec VERB ...        (jacrec VERB --help explains a verb)", "", *lines])


def _told(error: Exception) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def _fail(message: str) -> int:
    print(f"jacrec: {message}", file=sys.stderr)
    return USAGE_ERROR
