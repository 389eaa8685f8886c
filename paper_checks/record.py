"""Writing a check's result to results/, headed by the command that produced it."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def command(script: str, *arguments: str | Path) -> str:
    """The command line, with paths reduced to their last component."""
    return shlex.join(["python", f"paper_checks/{script}", *(Path(a).name if isinstance(a, Path) else a for a in arguments)])


def without_paths(text: str) -> str:
    """The text with every absolute path reduced to its last component, so that results do not depend on the machine."""
    return re.sub(r"(?<![\w.~])/(?:[^\s/:;,'\"`|)\]]+/)+", "", text)


def readable_json(record: Any) -> str:
    """Indented JSON, with lists of numbers on one line."""
    text = json.dumps(record, indent=1, ensure_ascii=False)
    return re.sub(r"\[[\s\d.,eE+-]+\]", lambda m: re.sub(r"\s+", " ", m[0]).replace("[ ", "[").replace(" ]", "]"), text)


def write(name: str, title: str, made_by: str, sections: Sequence[str], folder: Path | None = None) -> Path:
    """Write `folder`/<name> (default: results/<name>) with a title, the command and the sections; the path."""
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    parts = [f"# {title}", f"Made by `{made_by}`.", *(s for s in sections if s)]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path
