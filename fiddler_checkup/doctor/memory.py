"""The memory: how much of it, how fast it is read, huge pages, and what may be locked."""

import re
import resource
import time
from pathlib import Path
from typing import Final

from fiddler import cgroup, host_memory
from fiddler.kernels import native
from fiddler.kernels.cpus import choose_cpus, number_nodes, read_topology
from fiddler.sizes import format_bytes
from fiddler_checkup.doctor.finding import Finding, note, ok, warning

_READ_BYTES: Final = 512 * 2**20
"""More than the caches of a processor."""
_ROUNDS: Final = 4
_STREAMS: Final = (1, 2, 4, 8, 16)
_SLOW: Final = 15e9
"""Bytes per second: less than one channel of DDR4-2133."""
_THP: Final = "sys/kernel/mm/transparent_hugepage/enabled"
_MIB: Final = 2**20


def look(root: Path = cgroup.ROOT, *, measures: bool = True) -> list[Finding]:
    """The findings. Files are read under `root`; the bandwidth is this machine's own, measured in about a second."""
    findings = [_size(root)]
    if measures:
        findings.append(bandwidth(read_bytes_per_second()))
    return [*findings, _huge_pages(root), _locked()]


def _size(root: Path) -> Finding:
    memory = host_memory.measure(root)
    text = f"{format_bytes(memory.free_bytes)} free of {format_bytes(memory.total_bytes)}"
    limits = cgroup.memory_limits(root)
    if limits and min(limit.limit_bytes for limit in limits) <= memory.total_bytes:
        text += ", a limit of the control group (a container's, or a service's)"
    if memory.free_bytes < memory.total_bytes // 4:
        return warning(
            "memory", text, "experts that do not fit are read from the disk for each token; end other programs"
        )
    return ok("memory", text)


def bandwidth(bytes_per_second: float) -> Finding:
    """The finding for a measured rate."""
    text = f"{bytes_per_second / 1e9:.1f} GB/s read by all threads together"
    bound = f"a model that reads 3 GB for each token decodes at most {bytes_per_second / 3e9:.1f} tokens/s"
    if bytes_per_second < _SLOW:
        return warning(
            "bandwidth",
            f"{text}: {bound}",
            "`sudo dmidecode -t memory` shows whether all channels have modules; other programs and few cores lower it",
        )
    return ok("bandwidth", f"{text}: {bound}")


def read_bytes_per_second() -> float:
    """The rate at which the kernel's threads, or numpy's one thread if there is no kernel, read memory."""
    import numpy as np

    values = np.ones(_READ_BYTES // 4, dtype=np.float32)
    try:
        topology = read_topology()
        cpus = choose_cpus(topology)
        pool = native.Pool(cpus, number_nodes(topology, cpus))
    except native.NativeUnavailableError:
        return max(_rate(values.sum) for _ in range(_ROUNDS))
    try:
        return max(
            _rate(lambda streams=streams: pool.read(values.ctypes.data, _READ_BYTES, streams))
            for streams in _STREAMS
            for _ in range(_ROUNDS)
        )
    finally:
        pool.close()


def _rate(read: object) -> float:
    began = time.perf_counter()
    read()  # type: ignore[operator]
    return _READ_BYTES / (time.perf_counter() - began)


def _huge_pages(root: Path) -> Finding:
    try:
        found = re.search(r"\[(\w+)\]", (root / _THP).read_text())
    except OSError:
        return note("huge pages", "unknown to this system")
    mode = found[1] if found else "unknown"
    if mode == "never":
        return warning(
            "huge pages",
            "switched off",
            "`echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled` lets --weights ram use them",
        )
    return ok("huge pages", f"{mode}: --weights ram uses them")


def _locked() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return ok("memlock", "no limit")
    return note(
        "memlock", f"at most {format_bytes(soft)}; nothing here locks more, and a driver's pinned buffers do not count"
    )
