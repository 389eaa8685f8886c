"""The README and the pages of docs/: examples run, links exist."""

import re

import pytest
import torch

from tests import ROOT

PAGES = ["README.md", "CONTRIBUTING.md", "NOTATION.md", "CHANGELOG.md", "docs/guide.md", "docs/results.md"]
EXAMPLES = [
    (page, example)
    for page in PAGES
    for example in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    if "stable_baselines3" not in example  # which tests/adapters/test_examples.py runs
]


@pytest.mark.parametrize(("page", "example"), EXAMPLES, ids=lambda text: text.splitlines()[0])
def test_examples_run(page, example, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a run is written
    torch.manual_seed(0)
    names: dict = {}
    exec(compile(example, page, "exec"), names)
    if "step" in names:
        assert names["step"].accepted.all()
    elif "gains" in names:
        assert torch.isfinite(names["gains"].action(1, names["state"])).all()
        assert torch.isfinite(names["mpc"].act(names["state"])).all()
    elif "mpc" in names:
        assert torch.isfinite(names["mpc"].last.action).all()
    else:
        assert torch.isfinite(torch.as_tensor(names["action"])).all()


def test_there_are_examples():
    assert len(EXAMPLES) == 6


@pytest.mark.parametrize("page", PAGES)
def test_links_point_to_files(page):
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        assert (folder / target).exists(), f"{page} links to {target}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 8192
