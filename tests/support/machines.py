"""Pretended machines: the files that Linux would have on them, under a directory in place of /."""

from collections.abc import Mapping
from pathlib import Path

NO_LIMIT_V1 = str(2**63 - 4096)
"""The value of memory.limit_in_bytes in cgroup v1 if no limit was set."""


def write_files(root: Path, files: Mapping[str, str]) -> None:
    """Writes files by their paths without the leading slash."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def memory_v2(directory: str, limit: str | int, used: int, cached: int = 0) -> dict[str, str]:
    """The files of a control group's memory in cgroup v2. Half of the cached bytes are active."""
    return {
        f"{directory}/memory.max": str(limit),
        f"{directory}/memory.current": str(used),
        f"{directory}/memory.stat": f"anon 1\ninactive_file {cached - cached // 2}\nactive_file {cached // 2}",
    }


def memory_v1(directory: str, limit: str | int, used: int, cached: int = 0) -> dict[str, str]:
    """The same in cgroup v1, whose statistics without `total_` leave out descendants."""
    statistics = f"inactive_file 0\ntotal_inactive_file {cached - cached // 2}\ntotal_active_file {cached // 2}"
    return {
        f"{directory}/memory.limit_in_bytes": str(limit),
        f"{directory}/memory.usage_in_bytes": str(used),
        f"{directory}/memory.stat": statistics,
    }
