"""Coverage-guided fuzzing of the readers by atheris (`pip install atheris`): the bytes of whole files are mutated.

An input is a byte that chooses the kind of data set, followed by the content of its file (for a Minari set, of its HDF5 file).
It passes as in fuzz_readers.py. CORPUS starts with the valid files, and grows. Options after it are libFuzzer's.

    python benchmarks/fuzz_readers_atheris.py CORPUS -max_total_time=600 -max_len=20000
"""

import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

atheris: Any = import_module("atheris")  # not one of jacrec's requirements

sys.path.insert(0, str(Path(__file__).parent.parent))

with atheris.instrument_imports(include=["jacrec.data", "minari", "zipfile"]):
    from tests.data.readers.mutations import outcome
    from tests.data.readers.sources import KINDS, make


def main() -> None:
    """Write the valid files to the corpus and fuzz."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise SystemExit("expected a folder for the corpus as the first argument; see the top of this file")
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        cases = []
        for number, kind in enumerate(KINDS):
            place = Path(folder) / kind
            place.mkdir()
            cases.append(make(kind, place, Path(folder)))
            (corpus / f"valid_{kind}").write_bytes(bytes([number]) + cases[-1].path.read_bytes())

        def check(data: bytes) -> None:
            if not data:
                return
            case = cases[data[0] % len(cases)]
            case.path.write_bytes(data[1:])
            outcome(case, None, repair=bool(data[0] & 128))

        atheris.Setup(sys.argv, check)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
