"""The memory: how much of it, how fast it is read, huge pages, and what may be locked."""

import re
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
_LEAST_BUSY_SHARE: Final = 0.5
"""Threads that wait for slower ones, of another node, lose less than that."""
_SLOW: Final = 15e9
"""Bytes per second: less than one channel of DDR4-2133."""
_THP: Final = "sys/kernel/mm/transparent_hugepage/enabled"
_MIB: Final = 2**20


def look(root: Path = cgroup.ROOT, *, measures: bool = True) -> list[Finding]:
    """The findings. Files are read under `root`; the bandwidth is this machine's own, measured in about a second."""
    findings = [_size(root)]
    if measures:
        findings.append(bandwidth(measure()))
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


@dataclass(frozen=True, slots=True)
class Reading:
    """A measurement of reading memory.

    Attributes:
        bytes_per_second: The rate of all threads together.
        num_threads: The threads that read.
        busy_share: Of the time of the reading threads, the share that they had a processor for; 1 on an idle machine.
    """

    bytes_per_second: float
    num_threads: int
    busy_share: float = 1.0


def bandwidth(reading: Reading) -> Finding:
    """The finding for a measured rate."""
    rate = reading.bytes_per_second
    threads = "one thread" if reading.num_threads == 1 else f"{reading.num_threads} threads together"
    text = (
        f"{rate / 1e9:.1f} GB/s read by {threads}: a model that reads 3 GB for each token decodes at most "
        f"{rate / 3e9:.1f} tokens/s"
    )
    if reading.busy_share < _LEAST_BUSY_SHARE:
        others = f"{text}; other programs had the processors for {100 * (1 - reading.busy_share):.0f} % of that time"
        return warning("bandwidth", others, "end them, or run this again when they have ended")
    if rate < _SLOW:
        advice = "`sudo dmidecode -t memory` shows whether all channels have modules; few cores lower it"
        return warning("bandwidth", text, advice)
    return ok("bandwidth", text)


def measure() -> Reading:
    """Reads memory with the kernel's threads, or with numpy's one thread if there is no kernel."""
    import numpy as np

    values = np.ones(_READ_BYTES // 4, dtype=np.float32)
    try:
        topology = read_topology()
        cpus = choose_cpus(topology)
        pool = native.Pool(cpus, number_nodes(topology, cpus))
    except native.NativeUnavailableError:
        return max((_read(values.sum, 1) for _ in range(_ROUNDS)), key=_rate)
    try:
        return max(
            (
                _read(partial(pool.read, values.ctypes.data, _READ_BYTES, streams), len(cpus))
                for streams in _STREAMS
                for _ in range(_ROUNDS)
            ),
            key=_rate,
        )
    finally:
        pool.close()


def _read(read: Callable[[], object], num_threads: int) -> Reading:
    began, used = time.perf_counter(), time.process_time()
    read()
    seconds, busy = time.perf_counter() - began, time.process_time() - used
    return Reading(_READ_BYTES / seconds, num_threads, busy / (seconds * num_threads))


def _rate(reading: Reading) -> float:
    return reading.bytes_per_second


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
