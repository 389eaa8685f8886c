"""What a user installs: source distribution and wheel, in an environment outside the checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

import jacrec
from jacrec import cli
from tests import ROOT
from tests.packaging.release import faults

pytestmark = pytest.mark.slow
BUILD = "from setuptools import build_meta; print(build_meta.build_{}({!r}))"
HELP = """
from jacrec import cli
for verb in {verbs!r}:
    try:
        code = cli.main([*verb.split(), "--help"])
    except SystemExit as stop:
        code = stop.code
    assert code in (0, None), (verb, code)
"""
KEPT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info")


class Installed(NamedTuple):
    """An environment with jacrec in it."""

    python: Path
    folder: Path
    """a working directory outside the checkout"""

    def run(self, *args, **variables):
        """Run a program of the environment; the completed process."""
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TRITON_INTERPRET", "VIRTUAL_ENV")}
        env |= {"MINARI_DATASETS_PATH": str(self.folder / "data"), **variables}
        return subprocess.run([*map(str, args)], cwd=self.folder, env=env, capture_output=True, text=True, check=False)

    def jacrec(self, *args, **variables):
        """The output of the command line, which succeeds."""
        done = self.run(self.python.with_name("jacrec"), *args, **variables)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout


def build(kind, source, out):
    """The path of the wheel or sdist built from a source tree."""
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(kind, str(out))], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out / done.stdout.splitlines()[-1]


def source_tree(folder):
    """A copy of what the checkout holds, without what was built in it."""
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.is_dir() and path.name in ("jacrec", "kernels", "tests", "benchmarks", "paper_checks"):
            shutil.copytree(path, folder / path.name, ignore=KEPT_OUT)
        elif path.is_file() and not path.name.startswith("."):
            shutil.copy(path, folder)
    return folder


def released(pattern):
    """The file that is to be released, from the folder $JACREC_DIST; None: build one from the checkout."""
    folder = os.environ.get("JACREC_DIST")
    if not folder:
        return None
    (path,) = (ROOT / folder).glob(pattern)
    return path


def environment(folder, *pip):
    """A new environment that finds this one's packages, and jacrec as pip installs it there."""
    venv.create(folder / "env", symlinks=os.name != "nt")
    paths = sysconfig.get_paths(vars={"base": str(folder / "env"), "platbase": str(folder / "env")})
    # a path in a .pth file: packages are found there, the .pth files there are not read, so that no editable jacrec is
    (Path(paths["purelib"]) / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = Path(paths["scripts"]) / Path(sys.executable).name
    # --ignore-installed: pip sees the other packages too, and so perhaps a jacrec of this version
    options = ("--quiet", "--no-deps", "--no-index", "--ignore-installed")
    command = [sys.executable, "-m", "pip", "--python", python, "install", *options, *pip]
    subprocess.run([*map(str, command)], check=True)
    (folder / "elsewhere").mkdir()
    return Installed(python, folder / "elsewhere")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return source_tree(tmp_path_factory.mktemp("tree") / "jacrec")


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    return released("*.whl") or build("wheel", tree, tmp_path_factory.mktemp("wheel") / "dist")


@pytest.fixture(scope="module")
def installed(tree, wheel, tmp_path_factory):
    if os.environ.get("JACREC_KIND") == "sdist":
        sdist = released("*.tar.gz") or build("sdist", tree, tmp_path_factory.mktemp("sdist") / "dist")
        return environment(tmp_path_factory.mktemp("installed"), "--no-build-isolation", sdist)
    return environment(tmp_path_factory.mktemp("installed"), wheel)


def test_the_wheel_holds_every_module_once(wheel):
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info" not in name}
    sources = {
        prefix + path.relative_to(ROOT / folder).as_posix()
        for folder, prefix in (("jacrec", "jacrec/"), ("kernels", "jacrec/kernels/"))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix in (".py", ".yaml", ".npz", ".css", ".js", ".json", ".safetensors", ".typed")
    }
    assert found == sources - {"jacrec/kernels.py"}


def test_the_source_distribution_builds_the_same_wheel(tree, wheel, tmp_path):
    sdist = released("*.tar.gz") or build("sdist", tree, tmp_path / "dist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("jacrec-*")
    contents = []
    for path in (wheel, build("wheel", unpacked, tmp_path / "again")):
        with zipfile.ZipFile(path) as archive:
            contents.append({x.filename: x.CRC for x in archive.infolist() if not x.filename.endswith("RECORD")})
    assert contents[0] == contents[1]
    needed = ("jacrec/kernels.py", "tests/conftest.py", "tests/commands/test_cli.py", "Makefile", "constraints.txt")
    assert [name for name in needed if not (unpacked / name).is_file()] == []


def test_a_tag_is_released_if_all_agree(tree, tmp_path):
    tag = f"v{jacrec.__version__}"
    assert faults(tag) == []
    assert [x.split(":")[0] for x in faults("v99.0.0")] == ["jacrec/__init__.py", "CITATION.cff", "CHANGELOG.md"]
    (tmp_path / "jacrec").mkdir()
    for name in ("jacrec/__init__.py", "CHANGELOG.md"):
        shutil.copy(tree / name, tmp_path / name)
    citation = (tree / "CITATION.cff").read_text(encoding="utf-8")
    (tmp_path / "CITATION.cff").write_text(re.sub("date-released: .*", "date-released: 1999-12-31", citation), encoding="utf-8")
    assert faults(tag, tmp_path) == [f"CITATION.cff: date-released: expected that of {tag}"]


def test_every_verb_explains_itself(installed):
    assert installed.jacrec("--version") == f"jacrec {jacrec.__version__}\n"
    verbs = [*cli.VERBS, "data make", "data get", "data list", "data show"]
    done = installed.run(installed.python, "-c", HELP.format(verbs=verbs))
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(f"usage: jacrec {verb} " in done.stdout for verb in verbs)


def test_doctor_finds_nothing_broken(installed):
    out = installed.jacrec("doctor", COLUMNS="400")
    assert "everything essential works" in out
    count = len([path for folder in ("jacrec", "kernels") for path in (ROOT / folder).rglob("*.py")])
    # all but jacrec/__init__, jacrec/__main__ and the checkout's jacrec/kernels.py
    assert f"all {count - 3} of jacrec {jacrec.__version__} can be imported" in out


def test_a_sweep_is_planned(installed):
    for env in ("hopper", "Walker2d-v4"):
        installed.jacrec("data", "make", env, "random", "--steps", 1000)
    out = installed.jacrec("sweep", "smoke", "--dry-run")
    assert "0 of" in out


def test_the_demo_ends_with_a_report(installed):
    out = installed.jacrec("demo", "--quick")
    assert out.rstrip().endswith("report: runs/demo-quick/report.md")
    assert (installed.folder / "runs/demo-quick/report.md").is_file()


@pytest.mark.parametrize("interpreted", [False, True], ids=["cpu", "triton"])
def test_every_kernel_gives_autograds_gradient(installed, interpreted):
    if interpreted:
        pytest.importorskip("triton")
    script = shutil.copy(Path(__file__).with_name("gradients.py"), installed.folder)
    variables = {"TRITON_INTERPRET": "1"} if interpreted else {}
    done = installed.run(installed.python, script, **variables)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == (2 if interpreted else 9)


def test_an_editable_installation_finds_the_kernels(tree, tmp_path):
    editable = environment(tmp_path, "--no-build-isolation", "-e", tree)
    code = "import jacrec.kernels.cpu.base.layout as x, jacrec; print(x.__file__, jacrec.__file__, sep='\\n')"
    done = editable.run(editable.python, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tree / "kernels/cpu/base/layout.py"), str(tree / "jacrec/__init__.py")]
    assert editable.jacrec("--version") == f"jacrec {jacrec.__version__}\n"
