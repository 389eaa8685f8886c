"""`jacrec`'s public names and subpackages are imported on first access, and type checkers see the same."""

import ast
import importlib
import subprocess
import sys

import pytest

import jacrec
from tests import ROOT

SOURCE = ast.parse((ROOT / "jacrec" / "__init__.py").read_text(encoding="utf-8"))


def checked_imports():
    """Name -> module, of the imports that only type checkers see."""
    (block,) = [node for node in SOURCE.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
    return {alias.name: str(node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_type_checkers_see_what_is_imported():
    seen = checked_imports()
    packages = {name for name, module in seen.items() if module == "jacrec"}
    assert packages == set(jacrec._SUBPACKAGES)
    assert {name: module for name, module in seen.items() if name not in packages} == jacrec._MODULES
    assert sorted(jacrec.__all__) == sorted(jacrec._MODULES)


def test_every_subpackage_is_found():
    folders = {path.parent.name for path in (ROOT / "jacrec").glob("*/__init__.py")}
    assert set(jacrec._SUBPACKAGES) == {*folders, "kernels"}
    for name in jacrec._SUBPACKAGES:
        assert getattr(jacrec, name) is importlib.import_module(f"jacrec.{name}")


@pytest.mark.parametrize("name", jacrec.__all__)
def test_every_public_name_is_its_modules_own(name):
    assert getattr(jacrec, name) is getattr(importlib.import_module(jacrec._MODULES[name]), name)


def test_a_name_that_does_not_exist():
    with pytest.raises(AttributeError, match="module 'jacrec' has no attribute 'world'"):
        jacrec.world  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ImportError):
        from jacrec import nothing  # noqa: F401  # pyright: ignore[reportAttributeAccessIssue]


def test_dir_lists_all():
    assert {*jacrec.__all__, *jacrec._SUBPACKAGES, "__version__"} <= set(dir(jacrec))


@pytest.mark.parametrize(
    "code",
    [
        "import jacrec, sys; assert not {'torch', 'numpy'} & sys.modules.keys()",
        "import jacrec; jacrec.data.from_arrays; jacrec.training.train; jacrec.models.dynamics.DiffusionDynamics",
        "import jacrec.engine.rollout, jacrec.engine.linearize; from jacrec import rollout, linearize; rollout.__name__; "
        "assert callable(rollout) and callable(linearize) and callable(jacrec.rollout)",
        "from jacrec import *; World, mpc_update",
    ],
    ids=["import is light", "subpackages", "functions are not modules", "star"],
)
def test_in_a_new_process(code):
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
