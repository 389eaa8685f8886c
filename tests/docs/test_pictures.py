"""The README's pictures and headline numbers are those of the recorded results."""

import importlib.util
import re

import pytest

from tests import ROOT
from tests.docs.pages import text

README = text("README.md")


@pytest.fixture(scope="module")
def pictures():
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def labels(path):
    """The texts of an SVG."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text(encoding="utf-8"))


def test_the_pictures_show_the_records(pictures, tmp_path):
    pictures.main(tmp_path)
    for name in ("gain.svg", "speed.svg"):
        assert labels(tmp_path / name) == labels(ROOT / "docs/images" / name), "run: python docs/pictures.py"
        assert f"docs/images/{name}" in README
    _, scores = pictures.tuned_scores()
    drawn = labels(tmp_path / "gain.svg")
    assert all(f"{score:.1f}" in drawn for row in scores.values() for score in row)


def test_the_readmes_gains_are_recorded(pictures):
    _, scores = pictures.tuned_scores()
    base, alone, mpc = scores.values()
    gains = [round(x - y) for x, y in zip(mpc, base, strict=True)]
    assert f"MPC +{min(gains)} to +{max(gains)} points" in README
    by_critic = [x - y for x, y in zip(alone, base, strict=True)]
    assert f"critic alone +{min(by_critic):.0f} to +{max(by_critic):.1f}" in README
    fixed = pictures.fixed_gains()
    assert f"lost {-fixed['MPC'][0]:.1f} points" in README
    assert f"gained {fixed['MPC after a rehearsal'][0]:.1f} where" in README
    demo = re.search(
        r"base policy \| as trained \| ([\d.]+).*?H = 0[^\n]*?\| ([\d.]+) ±.*?MPC [^\n]*?\| ([\d.]+) ±",
        text("docs/results.md"),
        re.DOTALL,
    )
    assert demo is not None
    assert "base {}, critic alone {}, MPC {}".format(*demo.groups()) in README


def test_the_readmes_speeds_are_recorded(pictures):
    """Over the table's sizes of the diffusion model with 1 to 16 particles."""
    import json

    xeon = pictures.SPEED.with_name("grad_speed_cpu_intel-r-xeon-r-processor_2_cores.json")
    for record, peer, form in (
        (pictures.SPEED, "torch autograd", "{:.0f} to {:.0f}× faster than torch autograd"),
        (pictures.SPEED, "jax scan", "{:.1f} to {:.1f}× than JAX"),
        (xeon, "torch autograd", "Intel Xeon: {:.0f} to {:.0f}×"),
        (xeon, "jax scan", ", {:.1f} to {:.1f}× |"),
    ):
        rows = json.loads(record.read_text(encoding="utf-8"))["rows"]
        rows = [row["ms"] for row in rows if row["model"] == "diffusion" and row["M"] <= 16]
        ratios = [ms[peer]["median"] / ms["auto"]["median"] for ms in rows]
        assert form.format(min(ratios), max(ratios)) in README, (min(ratios), max(ratios))
