"""Coverage-guided fuzzing of the readers and of run folders by atheris (`pip install atheris`): bytes of whole files are mutated.

It runs with atheris 3.0 and Python 3.11 on Linux, where 34 460 inputs of the readers and of runs found nothing. An input is a
byte that chooses the kind of data set, or the file of a run, followed by the content of its file (for a Minari set, of its HDF5
file). It passes as in fuzz_readers.py. CORPUS starts with the valid files, and grows. Options after it are libFuzzer's.

    python benchmarks/fuzz_readers_atheris.py CORPUS -max_total_time=600 -max_len=20000
"""

import os
import shutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

atheris: Any = import_module("atheris")  # not one of jacrec's requirements

sys.path.insert(0, str(Path(__file__).parent.parent))

with atheris.instrument_imports(
    include=["jacrec.data", "jacrec.training.folder", "jacrec.models.io", "jacrec.util", "minari", "zipfile"]
):
    from tests.data.readers.mutations import outcome
    from tests.data.readers.sources import KINDS, make
    from tests.training.damage import NETWORKS, TEXTS, finished_run, loaded, outcome_of_text


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

        finished = finished_run(Path(folder) / "run")
        copy = Path(shutil.copytree(finished, Path(folder) / "copy"))
        files = (*NETWORKS, *TEXTS)
        whole = {name: (finished / name).read_bytes() for name in files}
        for number, name in enumerate(files, len(cases)):
            (corpus / f"valid_{Path(name).stem}").write_bytes(bytes([number]) + whole[name])

        def check(data: bytes) -> None:
            if not data:
                return
            choice = data[0] % 128 % (len(cases) + len(files))
            if choice < len(cases):
                cases[choice].path.write_bytes(data[1:])
                outcome(cases[choice], None, repair=bool(data[0] & 128))
                return
            name = files[choice - len(cases)]
            (copy / name).write_bytes(data[1:])
            (loaded if name in NETWORKS else outcome_of_text)(finished, copy, name)
            (copy / name).write_bytes(whole[name])

        atheris.Setup(sys.argv, check)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
