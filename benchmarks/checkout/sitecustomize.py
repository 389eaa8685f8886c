"""jacrec from a checkout, without being installed: put this folder and the checkout's root on PYTHONPATH.

    PYTHONPATH=benchmarks/checkout:. python -c "import jacrec.kernels"

Python imports this file when it starts. The kernels lie in kernels/ and are imported as `jacrec.kernels` (an installation maps
the one to the other, see pyproject.toml); here a finder does.
"""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[2] / "kernels"


class KernelsOfCheckout:
    """Finds `jacrec.kernels`; what is in it is found through its path as usual."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "jacrec.kernels":
            return None
        return spec_from_file_location(name, KERNELS / "__init__.py", submodule_search_locations=[str(KERNELS)])


sys.meta_path.insert(0, KernelsOfCheckout())  # pyright: ignore[reportArgumentType]
