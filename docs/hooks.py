"""The site's pages that stand elsewhere in the repository, and links between all of them.

Every page can be read where it lies: its links are relative paths in the repository. For the site, pages outside docs/ get a
place, and each link is rewritten to the place of its target. A link to a file that is no page, such as a source, becomes its text:
the site has no copy of it.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FIXED = {"NOTATION.md": "notation.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
FOLDERS = {"paper_checks/results": "results", "benchmarks/results": "results"}
SUFFIXES = (".md", ".png")
FENCE = re.compile(r"^(?:```|~~~).*?^(?:```|~~~)\s*$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)]*)?\)")


def places() -> dict[str, str]:
    """Path in the repository -> path in the site, of every page and picture."""
    found = {f"docs/{p.relative_to(ROOT / 'docs').as_posix()}": p for p in (ROOT / "docs").rglob("*") if p.suffix != ".py"}
    result = {path: path.removeprefix("docs/") for path, file in found.items() if file.is_file()} | FIXED
    for folder, place in FOLDERS.items():
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in SUFFIXES:
                inside = file.relative_to(ROOT / folder).as_posix()
                result[f"{folder}/{inside}"] = f"{place}/{inside}"
    twice = len(result) - len(set(result.values()))
    if twice:
        raise ValueError(f"docs: expected one file for every path of the site, got {twice} more; rename them")
    return result


def relinked(text: str, page: str, site: dict[str, str]) -> str:
    """The Markdown of `page`, a path in the repository, with its links as the site has them.

    Raises:
        ValueError: a link to a file that does not exist.
    """

    def link(match: re.Match) -> str:
        image, label, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
        if not (ROOT / path).exists():
            raise ValueError(f"{page}: expected a link to a file of the repository, got {target!r}; correct it")
        if path not in site:
            return label
        place = posixpath.relpath(site[path], posixpath.dirname(site[page]) or ".")
        return f"{image}[{label}]({place}{anchor or ''})"

    parts, end = [], 0
    for fence in FENCE.finditer(text):  # code is left alone
        parts += [LINK.sub(link, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(link, text[end:])])


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and pictures from outside docs/."""
    from mkdocs.structure.files import File

    for path, place in places().items():
        if not path.startswith("docs/"):
            files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite the links of one page."""
    site = places()
    (path,) = [path for path, place in site.items() if place == page.file.src_uri]
    return relinked(markdown, path, site)
