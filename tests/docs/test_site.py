"""The site: every page has a place, every public name a reference, and the tables say what the sources say."""

import importlib
import importlib.util
import re
import tomllib

import pytest
import yaml

import jacrec
from jacrec.commands import VERBS
from tests import ROOT
from tests.docs.pages import PAGES, blocks, text

REFERENCES = [page for page in PAGES if page.startswith("docs/reference/")]
SUBPACKAGES = ("adapters", "data", "experimental", "online", "planners", "training")
"""those with `__all__`; of the others, what the pages import is documented"""


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documented():
    """Every object of the reference, by its full name."""
    return [name for page in REFERENCES for name in re.findall(r"^::: (\S+)$", text(page), re.MULTILINE)]


def resolved(name):
    """The object with a full name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def navigation(entry):
    """The pages of an entry of mkdocs.yml's `nav`."""
    if isinstance(entry, str):
        return [entry]
    return [page for value in (entry.values() if isinstance(entry, dict) else entry) for page in navigation(value)]


def test_every_page_has_one_place(hooks):
    # mkdocs.yml has no tags of its own
    listed = navigation(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(listed) == sorted(place for place in hooks.places().values() if place.endswith(".md"))


@pytest.mark.parametrize(
    ("page", "link", "on_the_site"),
    [
        ("docs/concepts/thinking.md", "[N](../../NOTATION.md#sizes)", "[N](../notation.md#sizes)"),
        ("docs/results.md", "![x](../paper_checks/results/cost_gain.png)", "![x](results/cost_gain.png)"),
        ("docs/results.md", "[a](../paper_checks/results/factors/gains.md)", "[a](results/factors/gains.md)"),
        ("paper_checks/results/thinking.md", "[d](behaviour.md)", "[d](behaviour.md)"),
        ("paper_checks/results/thinking.md", "[`y`](../studies/thinking.yaml)", "`y`"),
        ("CONTRIBUTING.md", "[s](docs/index.md)", "[s](index.md)"),
        ("docs/index.md", "[e](https://example.org/x.md) [h](#here)", "[e](https://example.org/x.md) [h](#here)"),
        ("docs/index.md", "```\n[x](y.md)\n```\n", "```\n[x](y.md)\n```\n"),
    ],
)
def test_links_are_rewritten(hooks, page, link, on_the_site):
    assert hooks.relinked(link, page, hooks.places()) == on_the_site


def test_a_link_to_nothing_is_an_error(hooks):
    with pytest.raises(ValueError, match=r"docs/index.md: .*got 'absent.md'"):
        hooks.relinked("[x](absent.md)", "docs/index.md", hooks.places())


def test_the_reference_names_what_exists_once():
    names = documented()
    assert len(names) == len(set(names))
    for name in names:
        found = resolved(name)
        assert getattr(found, "__module__", name.rpartition(".")[0]) == name.rpartition(".")[0], name


def test_every_public_name_is_in_the_reference():
    found = {id(resolved(name)) for name in documented()}
    public = {name: getattr(jacrec, name) for name in jacrec.__all__}
    for package in SUBPACKAGES:
        module = importlib.import_module(f"jacrec.{package}")
        public |= {f"{package}.{name}": getattr(module, name) for name in module.__all__}
    assert [name for name, value in public.items() if id(value) not in found] == []


def test_what_the_how_to_pages_import_is_in_the_reference():
    found = {id(resolved(name)) for name in documented()}
    imported = {
        (module, name.strip())
        for page in PAGES
        if page.startswith(("README", "docs/how-to", "docs/index"))
        for block in blocks(page, "python")
        for module, names in re.findall(r"^from (jacrec\S*) import \(?([^()]+?)\)?$", block.code, re.MULTILINE)
        for name in names.split(",")
        if name.strip()
    }
    assert len(imported) > 20
    assert [pair for pair in imported if id(getattr(importlib.import_module(pair[0]), pair[1])) not in found] == []


def test_every_record_is_listed_with_its_command():
    page = text("docs/results.md").split("## Exactness")[0]
    studies = (ROOT / "paper_checks/results").rglob("*.md")
    records = [path.relative_to(ROOT).as_posix() for path in studies]
    records += [path.name for path in (ROOT / "benchmarks/results").glob("*.json")]
    assert [name for name in records if name not in page] == [], (
        "add it to the tables of docs/results.md, a study to mkdocs.yml too"
    )
    for script in re.findall(r"`python (\S+\.py)", page):
        assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith(("docs", "README", "CONTRIBUTING"))])
def test_files_that_pages_name_exist(page):
    """In full, or below a folder of sources, as `base/team.py` on the page on internals."""
    sources = [path.as_posix() for folder in ("jacrec", "kernels", "tests") for path in (ROOT / folder).rglob("*.py")]
    named = set(re.findall(r"`([\w./-]+\.(?:py|yaml|json|sh))`", text(page)))
    own = {
        "config.yaml",
        "deploy.json",
        "evaluation.json",
        "export.json",
        "tuning.json",
        "tuned.yaml",
        "small.yaml",
    }  # what commands and readers write
    records = {path.name for path in (ROOT / "benchmarks/results").iterdir()}
    absent = [n for n in named - own - records if not (ROOT / n).exists() and not any(s.endswith(f"/{n}") for s in sources)]
    assert absent == []


def test_the_table_of_verbs_is_complete():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text("docs/reference/index.md"), re.MULTILINE))
    assert list(rows) == list(VERBS)
    assert all(VERBS[verb].startswith(says.removesuffix("; resumable")) for verb, says in rows.items())


def test_the_readme_names_every_verb():
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text("README.md"), re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(VERBS)


def test_the_compatibility_page_has_the_bounds():
    rows = re.findall(r"^\| ([\w ()-]+) \| ([>=<.,\d]+) \| ([\d., ]+) \|$", text("docs/compatibility.md"), re.MULTILINE)
    listed = {name.split(" ")[0]: (required, tested) for name, required, tested in rows}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {re.split(r"[\[><]", x)[0]: re.sub(r"^[\w-]+(\[\w+\])?|;.*", "", x).strip() for x in project["dependencies"]}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()
    assert {name: pair[0] for name, pair in listed.items()} == {"Python": project["requires-python"], **required}
    assert {name: pair[1] for name, pair in listed.items() if name != "Python"} == {
        name: re.findall(rf"^{name}==(.+)$", pins, re.MULTILINE)[0] for name in required
    }
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    assert listed["Python"][1].split(", ") == workflow["jobs"]["tests"]["strategy"]["matrix"]["python"]
