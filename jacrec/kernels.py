"""The fused kernels, where they lie in a checkout: beside the package. An installation has them as `jacrec/kernels/`."""

from pathlib import Path

__path__ = [str(Path(__file__).parent.parent / "kernels")]
