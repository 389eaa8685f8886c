"""How much of the machine is ours."""

import os


def processors() -> int:
    """How many processors this process may use: those of its affinity where the system tells, else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
