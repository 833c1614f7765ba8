"""Limits that control groups put on this process: memory and CPU time, of cgroup v2 and v1, in a container or nested.

A limit of any ancestor holds for its descendants, so that the least one counts. All paths are under `root`, so that
tests can pretend any machine.
"""

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """One control group's limit and what its processes use of it, in bytes."""

    limit_bytes: int
    free_bytes: int
    """Below the limit. Cached files, such as checkpoints, count as free: the kernel drops them when memory is short."""


def memory_limits(root: Path = ROOT) -> list[MemoryLimit]:
    """The memory limits of this process's control group and of its ancestors; empty if there are none."""
    limits = [_memory_v2(directory) for directory in _directories_v2(root)]
    limits += [_memory_v1(directory) for directory in _directories_v1(root, "memory")]
    return [limit for limit in limits if limit is not None]


def cpu_quota(root: Path = ROOT) -> float:
    """CPUs' worth of time that this process's control groups allow; infinite if they do not limit it."""
    quotas = [_quota_v2(directory) for directory in _directories_v2(root)]
    quotas += [_quota_v1(directory) for directory in _directories_v1(root, "cpu")]
    return min(quotas, default=math.inf)


def usable_cpus(root: Path = ROOT) -> int:
    """How many threads can compute at the same time: the CPUs of the affinity mask, within the quota; at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return within_quota(cpus, cpu_quota(root))


def within_quota(num_threads: int, quota: float) -> int:
    """As many threads as a quota pays for. It is rounded down, because a thread that is stopped holds up the others."""
    return max(1, math.floor(min(num_threads, quota)))


def _memory_v2(directory: Path) -> MemoryLimit | None:
    # "max" if there is no limit. Above memory.high the kernel stops a process again and again, which is no better
    limits = [_integer(directory / name) for name in ("memory.max", "memory.high")]
    limit = min((each for each in limits if each is not None), default=None)
    if limit is None:
        return None
    used = _integer(directory / "memory.current") or 0
    return MemoryLimit(limit, limit - used + _cached_bytes(directory, ("inactive_file", "active_file")))


def _memory_v1(directory: Path) -> MemoryLimit | None:
    limit = _integer(directory / "memory.limit_in_bytes")  # about 2^63 if there is no limit
    if limit is None or limit < 0 or limit >= 2**62:
        return None
    used = _integer(directory / "memory.usage_in_bytes") or 0
    return MemoryLimit(limit, limit - used + _cached_bytes(directory, ("total_inactive_file", "total_active_file")))


def _cached_bytes(directory: Path, names: Iterable[str]) -> int:
    try:
        statistics = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
        return sum(int(statistics[name]) for name in names)
    except (OSError, ValueError, KeyError):
        return 0


def _quota_v2(directory: Path) -> float:
    try:
        quota, period = (directory / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf


def _quota_v1(directory: Path) -> float:
    quota, period = _integer(directory / "cpu.cfs_quota_us"), _integer(directory / "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else math.inf  # -1 if there is no limit


def _integer(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _directories_v2(root: Path) -> Iterator[Path]:
    mount = root / "sys/fs/cgroup"
    if (mount / "unified").is_dir():  # alongside hierarchies of v1
        mount /= "unified"
    for controllers, path in _memberships(root):
        if controllers == "":
            yield from _ancestors(mount, _within_mount(root, mount, path))


def _directories_v1(root: Path, controller: str) -> Iterator[Path]:
    for controllers, path in _memberships(root):
        if controller in controllers.split(","):
            together = root / "sys/fs/cgroup" / controllers
            mount = together if together.is_dir() else root / "sys/fs/cgroup" / controller
            yield from _ancestors(mount, _within_mount(root, mount, path))


def _within_mount(root: Path, mount: Path, path: str) -> str:
    """A group's path below the mount point, which may show a part of the hierarchy: a container's own group."""
    try:
        lines = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return path
    place = f"/{mount.relative_to(root)}"
    for fields in map(str.split, lines):  # 36 25 0:31 /docker/1 /sys/fs/cgroup rw - cgroup2 cgroup rw
        if len(fields) > 4 and fields[4] == place and ("cgroup" in fields or "cgroup2" in fields):
            shown = PurePosixPath(fields[3])
            if PurePosixPath(path).is_relative_to(shown):
                return str(PurePosixPath(path).relative_to(shown))
    return path


def _memberships(root: Path) -> Iterator[tuple[str, str]]:
    """(controllers, path) of each hierarchy that this process is in; the controllers of v2 are an empty string."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        yield controllers, path


def _ancestors(mount: Path, path: str) -> Iterator[Path]:
    """The group's directory and those above it, up to the mount point.

    In a container /proc/self/cgroup may name the group by its path on the host, while the mount shows the group itself:
    then only the mount point exists.
    """
    parts = PurePosixPath(path.lstrip("/")).parts
    if ".." not in parts:  # outside of this process's namespace
        yield from (mount.joinpath(*parts[:depth]) for depth in range(len(parts), 0, -1))
    yield mount
