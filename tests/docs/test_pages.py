"""Pages: Python blocks run in the order of their page, links lead somewhere, every page has a place on the site."""

import re
from dataclasses import replace

import pytest
import torch
import yaml

import jacrec.training
from jacrec.data.readers.mapped import read_mapping
from jacrec.evaluation import policies
from jacrec.models import unmodified
from jacrec.studies.spec import parse_study
from tests import ROOT
from tests.docs.pages import LANGUAGES, PAGES, blocks, text
from tests.examples.sac import save_sac

RUN = [page for page in PAGES if blocks(page, "python")]
SB3 = "docs/how-to/policies.md"
"""its block loads a model of Stable-Baselines3 from a file"""
ANSWERS = {"step", "gains", "mpc", "action"}


def run(page):
    """All Python blocks of a page as one program; what each block assigned."""
    names: dict = {}
    for block in blocks(page, "python"):
        before = dict(names)
        exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), names)
        yield {name for name in names if names[name] is not before.get(name)}, names


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    """Runs and data are written to a temporary folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    torch.manual_seed(0)
    written = set(unmodified.WRITTEN)
    yield tmp_path
    torch.set_default_dtype(torch.float32)
    unmodified.WRITTEN &= written  # a page's own classes


@pytest.mark.parametrize("page", [page for page in RUN if page != SB3])
def test_python_blocks_run(page, in_a_folder, capsys):
    checked = "assert " in "".join(block.code for block in blocks(page, "python"))
    for new, names in run(page):
        checked |= bool(new & ANSWERS)
        if "step" in new:
            assert names["step"].accepted.all()
        if "gains" in new:
            assert torch.isfinite(names["gains"].action(1, names["state"])).all()
            assert torch.isfinite(names["mpc"].act(names["state"])).all()
        elif "mpc" in new and names["mpc"].last is not None:
            assert torch.isfinite(names["mpc"].last.action).all()
        if "action" in new:
            assert torch.isfinite(torch.as_tensor(names["action"])).all()
    assert checked, f"{page}: expected a block that asserts something or computes one of {sorted(ANSWERS)}"


def test_the_page_with_stable_baselines3(in_a_folder, monkeypatch, capsys):
    """Trainings are cut to a moment."""
    save_sac(in_a_folder)
    (block,) = blocks(SB3, "python")
    assert len([line for line in block.code.splitlines() if line.strip()]) <= 15
    train_world, evaluate_policy = jacrec.training.train_world, policies.evaluate_policy

    def train_briefly(data, out, *, config, **parts):
        short = replace(config, dynamics=replace(config.dynamics, updates=20), reward=replace(config.reward, updates=20))
        return train_world(data, out, config=short, quiet=True, **parts)

    def evaluate_briefly(policy, world, env, config, **options):
        return evaluate_policy(policy, world, env, replace(config, episodes=1), **options)

    monkeypatch.setattr(jacrec.training, "train_world", train_briefly)
    monkeypatch.setattr(policies, "evaluate_policy", evaluate_briefly)
    list(run(SB3))
    assert re.search(r"MPC +│? *-\d+", capsys.readouterr().out)


def test_there_are_python_blocks():
    assert len(RUN) >= 12
    assert "README.md" in RUN
    assert sum(len(blocks(page, "python")) for page in RUN) >= 30


@pytest.mark.parametrize("page", PAGES)
def test_blocks_name_a_language_that_is_checked(page):
    assert {block.language for block in blocks(page)} <= LANGUAGES
    assert text(page).count("```") == 2 * len(blocks(page)), f"{page}: a block is not closed, or has more than a language"


@pytest.mark.parametrize("block", [b for page in PAGES for b in blocks(page, "yaml")], ids=lambda b: f"{b.page}:{b.line}")
def test_yaml_blocks_are_studies_or_mappings(block, tmp_path):
    content = yaml.safe_load(block.code)
    if "contestants" in content:
        assert parse_study(content).contestants
    else:
        (tmp_path / "mapping.yaml").write_text(block.code, encoding="utf-8")
        assert read_mapping(tmp_path / "mapping.yaml").observations


@pytest.mark.parametrize("page", PAGES)
def test_links_point_to_files(page):
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text(page)):
        assert (folder / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_links_point_to_sections(page):
    folder = (ROOT / page).parent
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", text(page)):
        linked = ((folder / target).resolve() if target else ROOT / page).read_text(encoding="utf-8")
        titles = re.findall(r"^#+ (.+)$", linked, re.MULTILINE)
        assert anchor in {slug(title) for title in titles}, f"{page} links to {target}#{anchor}"


def slug(title):
    """The anchor of a heading, as GitHub and the site make it for Latin letters."""
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 8192
