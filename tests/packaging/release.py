"""Whether a tag can be released: version, citation and changelog agree with it.

python tests/packaging/release.py v0.3.0
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def faults(tag: str, root: Path = ROOT) -> list[str]:
    """What keeps a tag from being released, as sentences."""
    source = (root / "jacrec" / "__init__.py").read_text(encoding="utf-8")
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    version = tag.removeprefix("v")
    entry = re.search(rf"^## \[{re.escape(version)}\] - (\d{{4}}-\d\d-\d\d)$", changes, re.MULTILINE)
    found = {
        "jacrec/__init__.py: __version__": re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE) == [version],
        "CITATION.cff: version": re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [version],
        "CHANGELOG.md: a section with a date": entry is not None,
        "CITATION.cff: date-released": entry is None or f"date-released: {entry[1]}\n" in citation,
    }
    return [f"{what}: expected that of {tag}" for what, right in found.items() if not right]


if __name__ == "__main__":
    sys.exit("\n".join(faults(sys.argv[1])) or 0)
