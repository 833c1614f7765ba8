"""How much memory of this machine this process may use: the physical memory, within the control groups' limits."""

import os
from dataclasses import dataclass
from pathlib import Path

from fiddler import cgroup
from fiddler.sizes import format_bytes


@dataclass(frozen=True, slots=True)
class HostMemory:
    """In bytes, within the control groups' limits."""

    total_bytes: int
    free_bytes: int
    """Can be allocated without paging out anything but cached files."""


def measure(root: Path = cgroup.ROOT) -> HostMemory:
    """The memory as it is now. Files are read under `root`."""
    total, free = _machine(root)
    limits = cgroup.memory_limits(root)
    total = min([total, *(limit.limit_bytes for limit in limits)])
    free = min([free, *(limit.free_bytes for limit in limits)])
    return HostMemory(total, max(0, free))


def shortage(num_bytes: int) -> str | None:
    """Why so many bytes cannot be allocated, for the end of a sentence that names what needs them; None if they can.

    Without this check the kernel kills the process once it has touched more pages than there are.
    """
    memory = measure()
    if num_bytes <= memory.free_bytes:
        return None
    needed, free, total = map(format_bytes, (num_bytes, memory.free_bytes, memory.total_bytes))
    return f"need {needed}, and {free} are free of the {total} of memory that this process may use"


def _machine(root: Path) -> tuple[int, int]:
    try:
        lines = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
        return int(lines["MemTotal"].split()[0]) * 1024, int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux: how much is available is not known
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total
