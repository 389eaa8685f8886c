"""Processors of this process: its affinity and the quota of its control groups."""

import os

import pytest

from jacrec.commands.doctor import check_devices
from jacrec.util import processors as module
from jacrec.util.processors import affinity, cpu_quota, processors


def make(tmp_path, membership, files):
    (tmp_path / "membership").write_text(membership)
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "cgroup").mkdir(exist_ok=True)
    return tmp_path / "membership", tmp_path / "cgroup"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        # version 2, in a container: its own group is the root
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        # a quota of a group above
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a/b\n", {"a/b/cpu.max": "200000 100000\n", "a/cpu.max": "400000 100000\n"}, 2.0),
        # the path of the host, which the container does not see
        ("0::/docker/0123\n", {"cpu.max": "300000 100000\n"}, 3.0),
        # version 1
        ("4:memory:/x\n1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.5),
        ("1:cpu,cpuacct:/j\n", {f"cpu,cpuacct/j/cpu.cfs_{k}_us": v for k, v in (("quota", "-1"), ("period", "100000"))}, None),
        ("1:cpu,cpuacct:/j\n", {f"cpu/j/cpu.cfs_{k}_us": v for k, v in (("quota", "100000"), ("period", "50000"))}, 2.0),
        # both at once, as under systemd
        (
            "1:cpu:/\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000", "unified/cpu.max": "70000 100000"},
            0.7,
        ),
        # of other resources, broken or missing
        ("4:memory:/x\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"cpu.max": "much\n"}, None),
        ("0::/\n", {"cpu.max": ""}, None),
        ("0::/\n", {"cpu.max": "100000 0\n"}, None),
        ("nonsense\n", {}, None),
        ("", {}, None),
    ],
)
def test_the_quota_is_the_least_of_all_groups(tmp_path, membership, files, expected):
    assert cpu_quota(*make(tmp_path, membership, files)) == expected


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert cpu_quota(tmp_path / "none", tmp_path / "none") is None


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (0.5, 1), (1.5, 1), (3.0, 3), (64.0, 8)])
def test_processors_are_those_of_the_affinity_within_the_quota(monkeypatch, quota, expected):
    monkeypatch.setattr(module, "affinity", lambda: 8)
    monkeypatch.setattr(module, "cpu_quota", lambda: quota)
    assert processors() == expected


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not tell")
def test_the_affinity_is_that_of_the_process():
    assert affinity() == len(os.sched_getaffinity(0))


def test_doctor_names_the_quota(monkeypatch):
    monkeypatch.setattr("jacrec.commands.doctor.cpu_quota", lambda: 1.5)
    monkeypatch.setattr("jacrec.commands.doctor.affinity", lambda: 8)
    monkeypatch.setattr("jacrec.commands.doctor.processors", lambda: 1)
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    cpu = check_devices()[0]
    assert cpu.found.startswith("1 of 8 processors usable: a quota of 1.5")
    assert (cpu.status, cpu.remedy.split(":")[0]) == ("note", "set OMP_NUM_THREADS=1")
