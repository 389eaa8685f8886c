"""Reports as one HTML page: nothing is loaded from elsewhere, every table is there, and the page is well-formed."""

from html.parser import HTMLParser

import pytest

from jacrec import cli
from jacrec.evaluation.page import write_page
from tests.study_folder import TASKS, fill, write_study

VOID = {"meta", "link", "img", "br", "hr"}
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360000002000001e221bc330000000049454e44ae426082"
)


class Page(HTMLParser):
    """The tables, addresses and text of a page; fails at a tag that is not closed in order."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tables, self.addresses, self.tags = [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "href")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag in VOID
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and "table" in self.open and self.open[-1] not in ("table", "thead", "tbody", "tr"):
            self.tables[-1][-1][-1] += data


def markdown_tables(path):
    """The tables of a report, without the marks of Markdown."""
    found, last = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("| "):
            if not last.startswith("| "):
                found.append([])
            if not set(line) <= set("|-: "):
                cells = line.strip("| ").split(" | ")
                found[-1].append([cell.replace("**", "").replace("`", "").replace("\\|", "|").strip() for cell in cells])
        last = line
    return found


def test_a_studys_report_is_one_page(tmp_path, capsys):
    study = fill(write_study(tmp_path / "study", TASKS), lambda task, seed, name: 50.0 + seed + len(name), noise=1.0)
    assert cli.main(["report", str(study), "--html"]) == 0
    assert f"page: {study / 'report' / 'report.html'}" in capsys.readouterr().out
    page, tables = Page(study / "report/report.html"), markdown_tables(study / "report/report.md")
    assert len(tables) >= 5
    assert [len(table) for table in page.tables] == [len(table) for table in tables]
    assert [table[0] for table in page.tables] == [table[0] for table in tables]
    assert all(address.startswith("data:") for address in page.addresses)
    assert sum(address.startswith("data:image/png;base64,") for address in page.addresses) >= 2
    assert {"script", "style"} <= set(page.tags)
    assert cli.main(["report", str(study), "--html", "--table", "1"]) == cli.USAGE_ERROR


@pytest.fixture
def report(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "secret.txt").write_text("not for the page")
    (tmp_path / "run/plot.png").write_bytes(PIXEL)
    (tmp_path / "run/episode.mp4").write_bytes(b"film")
    return tmp_path / "run/report.md"


def test_pictures_and_videos_are_embedded(report):
    report.write_text("# Run <1>\n\n![plot](plot.png)\n\n[episode.mp4](episode.mp4) and [elsewhere](https://example.org/x)\n")
    page = Page(write_page(report))
    assert "video" in page.tags
    picture, player, download, elsewhere = [x for x in page.addresses if x != "data:,"]
    assert picture.startswith("data:image/png;base64,")
    assert player == download == "data:video/mp4;base64,ZmlsbQ=="
    assert elsewhere == "https://example.org/x"
    assert "<title>Run &lt;1&gt;</title>" in report.with_suffix(".html").read_text()


def test_what_a_record_says_is_text(report):
    report.write_text("# x\n\n<script>alert(1)</script> [file](../secret.txt) ![file](../secret.txt) [gone](gone.csv)\n")
    page = Page(write_page(report))
    assert page.tags.count("script") == 1
    assert "not for the page" not in report.with_suffix(".html").read_text()
    assert page.addresses == ["data:,"]
