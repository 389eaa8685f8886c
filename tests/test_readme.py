"""What the README shows runs, and what it links to exists."""

import re

import pytest
import torch

from tests import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.splitlines()[0])
def test_examples_run(example, capsys):
    torch.manual_seed(0)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    if "step" in names:
        assert names["step"].accepted.all()
    elif "gains" in names:
        assert torch.isfinite(names["gains"].action(1, names["state"])).all()
        assert torch.isfinite(names["mpc"].act(names["state"])).all()
    else:
        assert torch.isfinite(names["action"]).all()


def test_there_are_examples():
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "NOTATION.md", "CHANGELOG.md"])
def test_links_point_to_files(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), f"{page} links to {target}"
