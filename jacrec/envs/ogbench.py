"""OGBench's environments: their names, and how the package registers them."""

import warnings
from contextlib import suppress
from importlib import import_module
from typing import Any, NamedTuple

SINGLE_TASK = "singletask"


class SingleTask(NamedTuple):
    """What OGBench's name of a single-task data set stands for."""

    dataset: str
    """name of the file, without suffix: cube-single-play-v0"""
    env_id: str
    """cube-single-singletask-v0, cube-single-singletask-task3-v0"""


def is_single_task(env_id: str | None) -> bool:
    """Whether an environment, or a data set, is one of OGBench's single tasks. They terminate an episode at its success alone."""
    return env_id is not None and "/" not in env_id and SINGLE_TASK in env_id.split("-")


def single_task(name: str) -> SingleTask:
    """The file and the environment of a data set such as cube-single-play-singletask-v0 or …-singletask-task3-v0.

    Raises:
        ValueError: the name lacks the kind of the data, or the version.
    """
    parts = name.split("-")
    at = parts.index(SINGLE_TASK)
    if at < 2 or at + 1 >= len(parts):
        raise ValueError(f"name: expected ENVIRONMENT-KIND-singletask-v0 as cube-single-play-singletask-v0, got {name!r}")
    return SingleTask("-".join((*parts[:at], parts[-1])), "-".join((*parts[: at - 1], *parts[at:])))


def ogbench(module: str = "ogbench") -> Any:
    """A module of the package, which registers its environments as it is imported.

    Raises:
        ValueError: it is not installed.
    """
    with suppress(
        ImportError
    ):  # its LLVM crashes if it is loaded after Mesa's, which OGBench's simulator brings (MUJOCO_GL=egl)
        import_module("triton")
    try:
        found = import_module(module)
    except ImportError as error:
        raise ValueError(
            f"ogbench: expected an installed package, got an error ({error}); pip install 'jacrec[ogbench]'"
        ) from None
    # its manipulation environments make their action space, of float64 bounds, at every access
    warnings.filterwarnings("ignore", message=r".*Box (low|high)'s precision lowered by casting", category=UserWarning)
    return found
