"""Headless rendering, in a subprocess because OpenGL may crash it."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass

REMEDY = "on Debian or Ubuntu: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri (and leave MUJOCO_GL unset or egl)"
_OPENGL = re.compile(r"egl|opengl|gladload|glx|glfw|osmesa|display|killed by signal|image is empty", re.IGNORECASE)
"""reasons that are OpenGL's"""
_PROBE = """
from jacrec.envs.physics import make_env
env = make_env("HalfCheetah-v4", render_mode="rgb_array", width=32, height=32)
env.reset(seed=0)
assert env.render().std() > 0, "the image is empty"
"""


@dataclass(frozen=True)
class Rendering:
    """Outcome of `probe`."""

    ok: bool
    backend: str
    reason: str
    """reason of the failure, in one line; empty if rendering works"""


def environment() -> dict[str, str]:
    """The environment variables of this process, with a headless rendering backend."""
    return {**os.environ, "MUJOCO_GL": os.environ.get("MUJOCO_GL") or "egl"}


def probe(timeout: float = 60.0) -> Rendering:
    """Render one small image in a subprocess."""
    backend = environment()["MUJOCO_GL"]
    reason = run_renderer([sys.executable, "-c", _PROBE], timeout)
    return Rendering(reason is None, backend, "" if reason is None else f"rendering with {backend} failed: {reason}")


def with_remedy(reason: str) -> str:
    """The reason of a failure, with what to do about it where that is known: other libraries name their own remedies."""
    if _OPENGL.search(reason):
        return f"{reason}; {REMEDY}"
    missing = re.search(r"No module named '(\w+)", reason)
    return f"{reason}; pip install {missing[1]}" if missing else reason


def run_renderer(command: list[str], timeout: float) -> str | None:
    """Run a rendering command in a subprocess; None on success, otherwise the reason of the failure."""
    try:
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return f"no image within {timeout:.0f} s"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"the process was killed by signal {-done.returncode}"
    # the error itself precedes the errors of OpenGL's clean-up
    lines = [line for line in done.stderr.splitlines() if line and not line.startswith((" ", "Exception ignored", "Traceback"))]
    return lines[0] if lines else f"exit code {done.returncode}"
