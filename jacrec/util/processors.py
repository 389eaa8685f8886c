"""How much of the machine is ours."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def processors() -> int:
    """How many processors this process may use: those of its affinity, and no more than a container's quota lasts for."""
    quota = cpu_quota()
    return affinity() if quota is None else max(1, min(affinity(), math.floor(quota)))


def affinity() -> int:
    """How many processors this process may run on: those of its affinity where the system tells, else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(membership: Path = MEMBERSHIP, root: Path = CGROUPS) -> float | None:
    """Processor seconds per second that the process's control groups allow; None without a limit.

    A group is limited by all groups above it too. Both versions of control groups are read.
    """
    quotas = [quota for folder in _groups(membership, root) for quota in (_quota_v2(folder), _quota_v1(folder)) if quota]
    return min(quotas, default=None)


def _groups(membership: Path, root: Path) -> Iterator[Path]:
    """The folders of the process's groups of processors, each with those above it.

    Inside a container the path may be that of the host, while its own group is mounted as the root: folders that do not exist
    are skipped.
    """
    for line in _lines(membership):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in (root / controllers, root / "cpu") if controllers else (root, root / "unified"):
            folder = mount / path.lstrip("/")
            while folder != mount:
                yield folder
                folder = folder.parent
            yield mount


def _quota_v2(folder: Path) -> float | None:
    """cpu.max: "quota period" in µs, or "max period"."""
    for line in _lines(folder / "cpu.max"):
        return _ratio(*line.split()[:2])
    return None


def _quota_v1(folder: Path) -> float | None:
    """cpu.cfs_quota_us, -1 without a limit, and cpu.cfs_period_us."""
    for quota, period in zip(_lines(folder / "cpu.cfs_quota_us"), _lines(folder / "cpu.cfs_period_us"), strict=False):
        return _ratio(quota, period)
    return None


def _ratio(quota: str, period: str = "100000") -> float | None:
    try:
        value = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return value if value > 0 else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
