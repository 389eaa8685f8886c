"""Versions of the packages that affect results, and a description of the machine."""

import platform
from importlib.metadata import PackageNotFoundError, version

from jacrec import __version__
from jacrec.util.processors import processors

PACKAGES = ("jacrec", "torch", "triton", "numpy", "gymnasium", "mujoco", "minari")


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Versions by package name: jacrec's own as it runs, the others as installed; "absent" if a package is not installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = __version__ if name == "jacrec" else version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def machine() -> dict[str, str | int]:
    """Operating system and architecture, usable cores, GPU."""
    import torch

    cores = processors()
    found: dict[str, str | int] = {"system": f"{platform.system()} {platform.machine()}", "cores": cores}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name(0)
    return found
