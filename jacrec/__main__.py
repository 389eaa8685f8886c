"""The command `jacrec`, also `python -m jacrec`: runs the command line, and ends quietly where Ctrl-C meets its imports.

Ctrl-C before the first line of this module, while Python itself starts (some 60 ms), cannot be caught: within the first
milliseconds the system ends the process without a word, and afterwards Python shows a traceback of its own start.
"""

import sys


def main() -> int:
    """Run the command line; the exit code."""
    try:
        from jacrec.cli import main as run

        return run()
    except KeyboardInterrupt:  # outside of a verb; `cli.main` says how to resume one
        print("\ninterrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
