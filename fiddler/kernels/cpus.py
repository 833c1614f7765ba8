"""Chooses the CPUs that compute, by the affinity mask, the CPU quota, hyper-threads and NUMA nodes.

Decisions are made on a Topology, so that tests can describe machines that are not at hand.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fiddler import cgroup
from fiddler.errors import UserError


class CpuListError(UserError):
    """A list of CPUs cannot be read, or names a CPU that this process may not use."""


@dataclass(frozen=True, slots=True)
class Topology:
    """The CPUs that this process may use."""

    nodes: Mapping[int, int]
    """NUMA node by CPU."""
    siblings: Mapping[int, int]
    """By CPU: how many CPUs with lower numbers share its core."""
    quota: float
    """CPUs' worth of time that the control groups allow; infinite if they do not limit it."""


def read_topology(root: Path = cgroup.ROOT) -> Topology:
    """The topology of this machine, as far as this process may use it. Files are read under `root`."""
    system = root / "sys/devices/system"
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    nodes = dict.fromkeys(allowed, 0)
    for path in system.glob("node/node[0-9]*/cpulist"):
        for cpu in parse_cpu_list(path.read_text()):
            if cpu in nodes:
                nodes[cpu] = int(path.parent.name.removeprefix("node"))
    siblings = {cpu: _sibling_rank(system, cpu) for cpu in allowed}
    return Topology(nodes, siblings, cgroup.cpu_quota(root))


def _sibling_rank(system: Path, cpu: int) -> int:
    try:
        text = (system / f"cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return 0
    return sum(other < cpu for other in parse_cpu_list(text))


def parse_cpu_list(text: str) -> list[int]:
    """CPU numbers, from Linux's own notation such as "0-3,8".

    Raises:
        CpuListError: The text is not such a list.
    """
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, dash, last = part.partition("-")
        try:
            cpus.update(range(int(first), int(last if dash else first) + 1))
        except ValueError:
            raise CpuListError(f"--cpus: {text.strip()!r} is not a list of CPUs such as 0-3,8") from None
    return sorted(cpus)


def choose_cpus(topology: Topology, cpus: str = "", threads: int = 0) -> list[int]:
    """The CPUs to pin threads to.

    Whole cores come before their siblings, and nodes take turns, so that fewer threads than CPUs still read from every
    node's memory. The quota counts only if `threads` is 0. It is rounded down: a thread too many would be stopped in
    the middle of a layer, and all others would wait for it.

    Args:
        topology: The CPUs that there are.
        cpus: The list to choose from, such as "0-3,8"; empty for all.
        threads: How many; 0 for one for each CPU, within the quota.

    Raises:
        CpuListError: `cpus` is not a list, or names a CPU that this process may not use.
    """
    candidates = parse_cpu_list(cpus) or sorted(topology.nodes)
    for cpu in candidates:
        if cpu not in topology.nodes:
            usable = format_cpu_list(topology.nodes)
            raise CpuListError(f"--cpus {cpus}: this process may not use CPU {cpu}, only {usable}")
    count = threads or cgroup.within_quota(len(candidates), topology.quota)
    turns: dict[tuple[int, int], int] = defaultdict(int)
    keys = {}
    for cpu in candidates:
        place = topology.siblings[cpu], topology.nodes[cpu]
        keys[cpu] = (place[0], turns[place], place[1])
        turns[place] += 1
    return sorted(sorted(candidates, key=lambda cpu: keys[cpu])[:count])


def number_nodes(topology: Topology, cpus: Iterable[int]) -> list[int]:
    """The node of each CPU, numbered from 0 among the nodes that are used."""
    used = [topology.nodes[cpu] for cpu in cpus]
    numbers = {node: number for number, node in enumerate(sorted(set(used)))}
    return [numbers[node] for node in used]


def format_cpu_list(cpus: Iterable[int]) -> str:
    """The inverse of parse_cpu_list."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][1] == cpu - 1:
            parts[-1][1] = cpu
        else:
            parts.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
