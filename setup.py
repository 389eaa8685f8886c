"""What pyproject.toml cannot express: the folder `kernels/` is installed as the package `jacrec.kernels`."""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Without `jacrec/kernels.py`, which leads from a checkout's package to its folder `kernels/`."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """The modules of a package, as (package, module, file)."""
        return [row for row in super().find_package_modules(package, package_dir) if row[:2] != ("jacrec", "kernels")]


kernels = find_packages(include=["kernels", "kernels.*"])
setup(
    packages=find_packages(include=["jacrec", "jacrec.*"]) + [f"jacrec.{name}" for name in kernels],
    package_dir={f"jacrec.{name}": name.replace(".", "/") for name in kernels},
    cmdclass={"build_py": BuildPy},
)
