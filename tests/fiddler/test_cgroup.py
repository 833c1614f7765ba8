"""Limits on CPU time, in the control groups of pretended machines. Memory's are in test_host_memory.py."""

import math
import os
from pathlib import Path

import pytest

from fiddler import cgroup
from tests.support.machines import write_files

ROOT_GROUPS = {"proc/self/cgroup": "2:memory:/\n1:cpu,cpuacct:/\n0::/"}
MOUNT = "sys/fs/cgroup"


def quota_v1(directory: str, quota: int) -> dict[str, str]:
    return {f"{directory}/cpu.cfs_quota_us": str(quota), f"{directory}/cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, math.inf),
        ({f"{MOUNT}/cpu.max": "max 100000"}, math.inf),
        ({f"{MOUNT}/cpu.max": "150000 100000"}, 1.5),
        ({f"{MOUNT}/cpu.max": "not a quota"}, math.inf),
        (quota_v1(f"{MOUNT}/cpu", -1), math.inf),
        (quota_v1(f"{MOUNT}/cpu", 400000), 4.0),
        (quota_v1(f"{MOUNT}/cpu,cpuacct", 400000), 4.0),
    ],
)
def test_quotas_of_both_cgroup_versions_are_read(tmp_path: Path, files: dict[str, str], quota: float) -> None:
    write_files(tmp_path, ROOT_GROUPS | files)
    assert cgroup.cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/a.slice/b.service", {f"{MOUNT}/a.slice/b.service/cpu.max": "100000 100000"}, 1.0),
        (
            "0::/a.slice/b.service",
            {f"{MOUNT}/a.slice/cpu.max": "50000 100000", f"{MOUNT}/a.slice/b.service/cpu.max": "100000 100000"},
            0.5,
        ),
        ("0::/a.slice/b.service", {f"{MOUNT}/c.slice/cpu.max": "100000 100000"}, math.inf),
        ("0::/docker/abc", {f"{MOUNT}/cpu.max": "100000 100000"}, 1.0),  # the mount shows the container's own group
        ("0::/../abc", {f"{MOUNT}/cpu.max": "100000 100000", "sys/fs/abc/cpu.max": "1 100000"}, 1.0),
        ("1:cpu,cpuacct:/docker/abc", quota_v1(f"{MOUNT}/cpu,cpuacct/docker/abc", 200000), 2.0),
        ("1:cpu,cpuacct:/docker/abc", quota_v1(f"{MOUNT}/cpu/docker/abc", 200000), 2.0),
        ("1:cpu,cpuacct:/docker/abc", quota_v1(f"{MOUNT}/cpu/docker", 200000), 2.0),
        ("1:cpuset:/abc\n0::/abc", quota_v1(f"{MOUNT}/cpu/abc", 200000), math.inf),
        (
            "1:cpu:/abc\n0::/abc",
            {f"{MOUNT}/unified/abc/cgroup.procs": ""} | quota_v1(f"{MOUNT}/cpu/abc", 200000),
            2.0,
        ),
    ],
)
def test_the_least_quota_of_a_group_and_its_ancestors_counts(
    tmp_path: Path, own: str, files: dict[str, str], quota: float
) -> None:
    write_files(tmp_path, {"proc/self/cgroup": own} | files)
    assert cgroup.cpu_quota(tmp_path) == quota


def _mounted(shown: str, place: str, kind: str) -> dict[str, str]:
    lines = ["22 1 0:20 / / rw - ext4 /dev/root rw", f"36 25 0:31 {shown} /{place} rw,relatime - {kind} cgroup rw"]
    return {"proc/self/mountinfo": "\n".join(lines)}


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/docker/1/job", _mounted("/docker/1", MOUNT, "cgroup2") | {f"{MOUNT}/job/cpu.max": "200000 100000"}),
        (
            "1:cpu,cpuacct:/docker/1/job",
            _mounted("/docker/1", f"{MOUNT}/cpu", "cgroup") | quota_v1(f"{MOUNT}/cpu/job", 200000),
        ),
        (
            "1:cpu:/abc\n0::/docker/1/job",
            _mounted("/docker/1", f"{MOUNT}/unified", "cgroup2") | {f"{MOUNT}/unified/job/cpu.max": "200000 100000"},
        ),
        ("0::/a", _mounted("/b", MOUNT, "cgroup2") | {f"{MOUNT}/a/cpu.max": "200000 100000"}),
    ],
)
def test_a_mount_that_shows_a_part_of_the_hierarchy_is_understood(
    tmp_path: Path, own: str, files: dict[str, str]
) -> None:
    write_files(tmp_path, {"proc/self/cgroup": own} | files)
    assert cgroup.cpu_quota(tmp_path) == 2.0


@pytest.mark.parametrize(
    ("most", "high", "limit"),
    [("max", "3000", 3000), ("2000", "3000", 2000), ("max", "max", None), ("2000", None, 2000)],
)
def test_the_limit_above_which_a_process_is_stopped_counts(
    tmp_path: Path, most: str, high: str | None, limit: int | None
) -> None:
    files = {"proc/self/cgroup": "0::/", f"{MOUNT}/memory.max": most, f"{MOUNT}/memory.current": "1000"}
    write_files(tmp_path, files | ({} if high is None else {f"{MOUNT}/memory.high": high}))
    assert [found.limit_bytes for found in cgroup.memory_limits(tmp_path)] == ([] if limit is None else [limit])


def test_without_control_groups_nothing_is_limited(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{MOUNT}/cpu.max": "100000 100000"})
    assert cgroup.cpu_quota(tmp_path) == math.inf
    assert cgroup.memory_limits(tmp_path) == []


def test_cpus_are_usable_within_the_quota(tmp_path: Path) -> None:
    assert cgroup.usable_cpus(tmp_path) == len(os.sched_getaffinity(0))
    write_files(tmp_path, {"proc/self/cgroup": "0::/", f"{MOUNT}/cpu.max": "10000 100000"})
    assert cgroup.usable_cpus(tmp_path) == 1
    assert [cgroup.within_quota(4, quota) for quota in (0.1, 1.0, 2.5, 9.0, math.inf)] == [1, 1, 2, 4, 4]
