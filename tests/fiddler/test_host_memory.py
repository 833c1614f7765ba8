"""Memory that this process may use, on pretended machines."""

from pathlib import Path

import pytest

from fiddler import host_memory
from fiddler.host_memory import HostMemory
from tests.support.machines import NO_LIMIT_V1, memory_v1, memory_v2, write_files

MEMINFO = {"proc/meminfo": "MemTotal:  9999 kB\nMemAvailable:  5000 kB"}
MACHINE = HostMemory(9999 * 1024, 5000 * 1024)
MOUNT = "sys/fs/cgroup"


def test_memory_is_what_the_control_group_leaves(tmp_path: Path) -> None:
    write_files(tmp_path, MEMINFO)
    assert host_memory.measure(tmp_path) == MACHINE
    write_files(tmp_path, {"proc/self/cgroup": "0::/"} | memory_v2(MOUNT, 3_000_000, 2_500_000, 1_000_000))
    assert host_memory.measure(tmp_path) == HostMemory(3_000_000, 3_000_000 - 2_500_000 + 1_000_000)
    write_files(tmp_path, {f"{MOUNT}/memory.max": "999999999"})
    assert host_memory.measure(tmp_path) == MACHINE
    write_files(tmp_path, {f"{MOUNT}/memory.max": "max"})
    assert host_memory.measure(tmp_path) == MACHINE


NESTED = f"{MOUNT}/a.slice/b.service"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/a.slice/b.service", memory_v2(NESTED, 3_000_000, 1_000_000), HostMemory(3_000_000, 2_000_000)),
        (
            "0::/a.slice/b.service",
            memory_v2(NESTED, 3_000_000, 1_000_000) | memory_v2(f"{MOUNT}/a.slice", 4_000_000, 3_500_000, 200_000),
            HostMemory(3_000_000, 700_000),  # others in the slice use more than this service
        ),
        (
            "0::/a.slice/b.service",
            memory_v2(NESTED, "max", 1_000_000) | memory_v2(f"{MOUNT}/a.slice", 2_000_000, 1_500_000),
            HostMemory(2_000_000, 500_000),
        ),
        ("0::/docker/abc", memory_v2(MOUNT, 3_000_000, 1_000_000), HostMemory(3_000_000, 2_000_000)),
        (
            "4:memory:/docker/abc\n0::/",
            memory_v1(f"{MOUNT}/memory/docker/abc", 3_000_000, 2_500_000, 1_000_000)
            | memory_v1(f"{MOUNT}/memory", NO_LIMIT_V1, 9_000_000),
            HostMemory(3_000_000, 1_500_000),
        ),
        (
            "4:memory:/docker/abc",
            memory_v1(f"{MOUNT}/memory", 3_000_000, 2_500_000, 1_000_000),
            HostMemory(3_000_000, 1_500_000),  # the mount shows the container's own group
        ),
        (
            "4:memory:/a.slice/b.service",
            memory_v1(f"{MOUNT}/memory/a.slice/b.service", NO_LIMIT_V1, 1_000_000)
            | memory_v1(f"{MOUNT}/memory/a.slice", 2_000_000, 1_500_000),
            HostMemory(2_000_000, 500_000),
        ),
        ("4:memory:/abc", memory_v1(f"{MOUNT}/memory/abc", NO_LIMIT_V1, 1_000_000), MACHINE),
        ("4:memory:/abc", memory_v1(f"{MOUNT}/memory/abc", -1, 1_000_000), MACHINE),
        ("0::/a.slice/b.service", memory_v2(f"{MOUNT}/c.slice", 3_000_000, 1_000_000), MACHINE),
        ("0::/", memory_v2(MOUNT, 3_000_000, 3_500_000), HostMemory(3_000_000, 0)),
        ("0::/", {f"{MOUNT}/memory.max": "3000000"}, HostMemory(3_000_000, 3_000_000)),  # usage is not shown
    ],
)
def test_the_least_limit_of_a_group_and_its_ancestors_counts(
    tmp_path: Path, own: str, files: dict[str, str], expected: HostMemory
) -> None:
    write_files(tmp_path, MEMINFO | {"proc/self/cgroup": own} | files)
    assert host_memory.measure(tmp_path) == expected


def test_a_machine_without_meminfo_has_its_physical_memory(tmp_path: Path) -> None:
    memory = host_memory.measure(tmp_path)
    assert memory.total_bytes == memory.free_bytes > 2**20
