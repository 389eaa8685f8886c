"""The pages of the documentation and their code blocks."""

import re
from typing import NamedTuple

from tests import ROOT

PAGES = [
    *("README.md", "CONTRIBUTING.md", "NOTATION.md", "CHANGELOG.md"),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
]
LANGUAGES = {"python", "bash", "yaml", ""}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block."""

    page: str
    line: int
    """of the page, where its code begins"""
    language: str
    code: str


def text(page: str) -> str:
    """The Markdown of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str | None = None) -> list[Block]:
    """The blocks of a page, in order."""
    content = text(page)
    found = [Block(page, content.count("\n", 0, m.start(2)) + 1, m[1], m[2]) for m in FENCE.finditer(content)]
    return [block for block in found if language in (None, block.language)]
