"""The benchmark of the readers on small files."""

import json
import subprocess
import sys

from tests import ROOT

SCRIPT = ROOT / "benchmarks" / "readers.py"


def test_all_readers_are_measured(tmp_path):
    path = tmp_path / "readers.json"
    command = [sys.executable, str(SCRIPT), "--rows", "3000", "--json", str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    result = json.loads(path.read_text())
    assert result["rows"] == 3000
    rows = {"locomotion": (3000, 2997), "antmaze": (2997, 2997), "minari": (3000, 2997), "arrays": (3000, 2997)}
    assert {name: (x["transitions"], x["td_rows"]) for name, x in result["readers"].items()} == rows
    for name, x in result["readers"].items():
        assert name in printed
        assert x["read"]["seconds"] >= 0
        assert x["read"]["peak"] > 0
    width = {"locomotion": 17 * 2 + 6 * 2, "antmaze": 29 * 2 + 8 * 2}
    for name, numbers in width.items():
        per_row = 4 * numbers + 4 + 2 + 8  # reward, two flags, episode
        assert result["readers"][name]["arrays_mib"] == round(rows[name][0] * per_row / 2**20, 1)
