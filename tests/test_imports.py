"""Imports run one way, the engine knows nothing of data or environments, and files and folders stay small."""

import ast
import graphlib
import sys

import pytest

import jacrec
from tests import ROOT

PUBLIC = "jacrec"  # jacrec/__init__.py itself
LAYERS = (
    ("util",),
    ("models",),
    ("engine",),
    ("kernels",),
    ("control",),
    ("experimental", "planners"),
    (PUBLIC,),
    ("envs",),
    ("data",),
    ("training",),
    ("evaluation",),
    ("adapters",),
    ("studies",),
    ("online",),
    ("commands",),
    ("cli", "__main__"),
)
LAYER = {part: i for i, layer in enumerate(LAYERS) for part in layer}
ENGINE_MAY_USE = {"torch", "numpy", "safetensors", "triton", "numba", "llvmlite", "filelock"}
OUTSIDE_ROOMS = {"__init__.py", "__main__.py", "cli.py", "py.typed", "__pycache__"}
MOST_ROOMS = 15
MOST_LINES = 400


def package_sources():
    """Module name -> source text, for jacrec/ and kernels/ (which is imported as jacrec.kernels)."""
    result = {}
    for folder, prefix in (("jacrec", "jacrec"), ("kernels", "jacrec.kernels")):
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            result[".".join([prefix, *(p for p in parts if p != "__init__")])] = path.read_text(encoding="utf-8")
    return result


def imported(source, modules):
    """Every module that `source` imports, at its top or inside a function; `modules` are the names of jacrec's own."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: write the module's full name"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else str(node.module) for name in inner)


def part_of(module):
    """The name in LAYERS that a module of jacrec belongs to."""
    return module.split(".")[1] if "." in module else PUBLIC


def violations(sources):
    """What breaks the order, as sentences."""
    found = []
    graph = {}
    for module, source in sources.items():
        part = part_of(module)
        if part not in LAYER:
            found.append(f"{module} is in no layer: add '{part}' to LAYERS")
            continue
        graph[module] = set()
        for target in imported(source, sources):
            top = target.split(".")[0]
            if top == "jacrec":
                graph[module].add(target)
                if LAYER.get(part_of(target), -1) > LAYER[part]:
                    found.append(f"{module} imports {target}, which is above it")
            elif LAYER[part] <= LAYER[PUBLIC] and top not in ENGINE_MAY_USE | sys.stdlib_module_names:
                found.append(f"{module} is part of the engine and imports {target}")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append("modules import each other: " + " -> ".join(error.args[1]))
    return found


def test_imports_run_one_way():
    sources = package_sources()
    # what jacrec itself imports, for type checkers alone, stands in its table too
    sources[PUBLIC] = "\n".join(f"import {module}" for module in sorted(set(jacrec._MODULES.values())))
    assert violations(sources) == []


@pytest.mark.parametrize(
    ("module", "source", "sentence"),
    [
        (
            "jacrec.control.mpc",
            "from jacrec.training.run import load",
            "jacrec.control.mpc imports jacrec.training.run, which is above it",
        ),
        (
            "jacrec.models.world",
            "def f():\n    import jacrec.data",
            "jacrec.models.world imports jacrec.data, which is above it",
        ),
        (
            "jacrec.control.mpc",
            "from jacrec.experimental import decoupled",
            "jacrec.control.mpc imports jacrec.experimental, which is above it",
        ),
        (
            "jacrec.models.networks",
            "import gymnasium as gym",
            "jacrec.models.networks is part of the engine and imports gymnasium",
        ),
        ("jacrec.novelty", "", "jacrec.novelty is in no layer: add 'novelty' to LAYERS"),
        ("jacrec.util.errors", "from jacrec.util.files import X", "modules import each other"),
    ],
)
def test_a_wrong_import_is_found(module, source, sentence):
    sources = {"jacrec.util.files": "from jacrec.util import errors", "jacrec.util.errors": "", module: source}
    found = violations(sources)
    assert len(found) == 1
    assert found[0].startswith(sentence)


def test_the_package_is_a_few_rooms():
    rooms = {path.name for path in (ROOT / "jacrec").iterdir()} - OUTSIDE_ROOMS
    assert len(rooms) <= MOST_ROOMS, sorted(rooms)


def test_files_are_read_in_one_sitting():
    folders = ("jacrec", "kernels", "tests", "benchmarks", "paper_checks")
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}
