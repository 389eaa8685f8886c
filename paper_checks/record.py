"""Where a check's result is kept, and what stands at its head: the command that made it and what it ran with."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def command(script: str, *arguments: str | Path) -> str:
    """The command as another machine would type it: of a path the last name alone."""
    return shlex.join(["python", f"paper_checks/{script}", *(Path(a).name if isinstance(a, Path) else a for a in arguments)])


def without_paths(text: str) -> str:
    """The text with every absolute path cut down to its last name: a result speaks of no machine's folders."""
    return re.sub(r"(?<![\w.~])/(?:[^\s/:;,'\"`|)\]]+/)+", "", text)


def readable_json(record: Any) -> str:
    """Indented JSON with lists of numbers on one line."""
    text = json.dumps(record, indent=1, ensure_ascii=False)
    return re.sub(r"\[[\s\d.,eE+-]+\]", lambda m: re.sub(r"\s+", " ", m[0]).replace("[ ", "[").replace(" ]", "]"), text)


def write(name: str, title: str, made_by: str, sections: Sequence[str], folder: Path | None = None) -> Path:
    """results/<name>, or that of another folder, with a title, the command and the sections; its path."""
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    parts = [f"# {title}", f"Made by `{made_by}`.", *(s for s in sections if s)]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path
