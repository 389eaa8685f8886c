"""Running the benchmarks as scripts."""

import os
import subprocess
import sys

from tests import ROOT

FOLDER = ROOT / "benchmarks"
TINY = ("--tasks", "hopper", "--particles", "1", "--steps", "2", "--width", "16")


def run(*command: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a script in a subprocess, as users do."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
