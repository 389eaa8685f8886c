"""Tests with the lowest or the newest versions of what jacrec requires, in a new environment.

    python tests/bounds.py lowest --torch 2.13.0
    python tests/bounds.py newest --python python3.13

Not part of the test suite: run it before a release and after a change of the bounds in pyproject.toml. The environment takes
some 2 GB; with torch builds for CUDA, which pip takes for most versions on Linux, several more: --torch names another version.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = (
    "engine",
    "models",
    "control",
    "kernels",
    "envs",
    "data",
    "training",
    "commands",
    "util",
    "docs",
    "test_public.py",
)
TOOLS = ("pytest", "pytest-xdist", "hypothesis")
NEED_ROBOTICS = "pointmaze or antmaze_umaze or (slow_loop and antmaze) or antmaze_of_minari or environment_decides"
"""tests of gymnasium-robotics, which requires a newer gymnasium than jacrec"""
LOWEST = ("-k", f"not ({NEED_ROBOTICS})", "-W", "ignore::DeprecationWarning")
"""old versions use what newer ones of their own requirements deprecate"""


def lower_bounds() -> dict[str, str]:
    """Package -> lowest version, as pyproject.toml requires them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = {}
    for requirement in project["dependencies"]:
        match = re.match(r"([\w.-]+)(?:\[[\w,-]+\])?>=([\w.]+)", requirement)
        if match is None:
            raise ValueError(f"pyproject.toml: expected NAME>=VERSION, got {requirement!r}")
        found[match[1]] = match[2]
    return found


def main() -> int:
    """Make the environment, install, test; the exit code of pytest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", choices=("lowest", "newest"))
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment; default: this one")
    parser.add_argument("--torch", help="version of torch; default: the lowest or newest")
    parser.add_argument("--workers", default="2", help="processes that test side by side; default: 2")
    parser.add_argument("tests", nargs="*", help=f"arguments for pytest; default: {' '.join(TESTS)}")
    args = parser.parse_args()
    pins = lower_bounds() if args.versions == "lowest" else {}
    if args.torch:
        pins["torch"] = args.torch
    with tempfile.TemporaryDirectory(prefix="jacrec-bounds-") as folder:
        subprocess.run([args.python, "-m", "venv", folder], check=True)
        python = Path(folder, "Scripts" if os.name == "nt" else "bin", "python")
        constraints = Path(folder, "constraints.txt")
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", constraints]
        subprocess.run([*pip, "torch"], check=True)
        subprocess.run([*pip, str(ROOT) + ("" if args.versions == "lowest" else "[maze]"), *TOOLS], check=True)
        subprocess.run([python, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"], check=True)
        options = LOWEST if args.versions == "lowest" else ()
        tests = args.tests or [str(ROOT / "tests" / name) for name in TESTS]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [python, "-m", "pytest", "-q", "-n", args.workers, *options, *tests], cwd=ROOT, env=env, check=False
        )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
