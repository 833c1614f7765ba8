"""This machine's memory, as far as this process may take it. torch is not imported here."""

from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class HostMemory:
    """In bytes, within the control group's limit where there is one."""

    total_bytes: int
    free_bytes: int
    """What may be taken without others' being paged out."""


def measure() -> HostMemory:
    """What there is now, as the kernel and the control group of this process say."""
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    total, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    try:
        limit, used = (int((_CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        # what is cached of files, such as checkpoints, counts as used and gives way
        left = limit - used + int(statistics["inactive_file"]) + int(statistics["active_file"])
    except (OSError, ValueError, KeyError):  # no control group, no limit ("max"), or no such statistic
        return HostMemory(total, free)
    return HostMemory(min(total, limit), max(0, min(free, left)))
