"""A report as one HTML page that needs no other file and no network: pictures and linked files are embedded."""

import base64
import html
import mimetypes
import re
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

from jacrec.util.files import read_text, write_text

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; media-src data:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}</main>
<script>
{script}</script>
</body>
</html>
"""
VIDEOS = (".mp4", ".webm")


def write_page(report: Path, root: Path | None = None) -> Path:
    """Write REPORT.html beside a report in Markdown; its path.

    Tables can be sorted by a click on a heading. Links to files become downloads of embedded copies, videos are played in the page.

    Args:
        root: folder that pictures and linked files have to lie in (default: the report's); links out of it remain as text.

    Raises:
        FileNotFoundError: there is no report.
    """
    text = read_text(report, "write the report again")
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    for token in tokens:
        for child in token.children or ():
            _embed(child, report.parent, root or report.parent)
        if token.children:
            token.children = _with_players(token.children)
    body = parser.renderer.render(tokens, parser.options, {})
    heading = re.search(r"(?m)^# (.+)$", text)
    title = html.escape(heading[1] if heading else report.stem)
    own = files("jacrec.evaluation")
    style, script = ((own / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    path = report.with_suffix(".html")
    write_text(path, PAGE.format(title=title, style=style, body=body, script=script))
    return path


def _embed(token: Token, folder: Path, root: Path) -> None:
    """Replace the file that a picture or a link names by its content."""
    key = {"image": "src", "link_open": "href"}.get(token.type)
    if key is None or "://" in str(token.attrs[key]):
        return
    path = (folder / unquote(str(token.attrs.pop(key)))).resolve()
    if not path.is_file() or not path.is_relative_to(root.resolve()):
        return
    kind = mimetypes.guess_type(path.name)[0] or "text/plain"
    token.attrs[key] = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    if token.type == "link_open":
        token.attrs["download"] = path.name
        token.meta["video"] = path.suffix in VIDEOS


def _with_players(tokens: list[Token]) -> list[Token]:
    """The tokens of a line, with a player before each link to a video."""
    found = []
    for token in tokens:
        if token.meta.get("video"):
            player = Token("html_inline", "", 0)
            player.content = f'<video controls muted loop src="{token.attrs["href"]}"></video> '
            found.append(player)
        found.append(token)
    return found
