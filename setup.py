"""What pyproject.toml cannot say: packages are found, and the folder `kernels/` is installed as `jacrec.kernels`."""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildWithoutPointer(build_py):
    """`jacrec/kernels.py` points from a checkout's package to its `kernels/`; an installation has the folder itself."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """All modules of a package but that one."""
        found = super().find_package_modules(package, package_dir)
        return [row for row in found if row[:2] != ("jacrec", "kernels")]


kernels = find_packages(include=["kernels", "kernels.*"])
setup(
    packages=find_packages(include=["jacrec", "jacrec.*"]) + [f"jacrec.{name}" for name in kernels],
    package_dir={f"jacrec.{name}": name.replace(".", "/") for name in kernels},
    cmdclass={"build_py": BuildWithoutPointer},
)
