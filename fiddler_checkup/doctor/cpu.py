"""The processor: which kernel runs on it, how many cores may be used, and how they are divided over NUMA nodes."""

import math
import os
from pathlib import Path
from typing import Final

from fiddler import cgroup
from fiddler.kernels import native
from fiddler.kernels.cpus import Topology, format_cpu_list, read_topology
from fiddler_checkup import packages
from fiddler_checkup.doctor.finding import Finding, note, ok, problem, warning

_FLAGS: Final = {"avx2": "avx2", "avx512": "avx512bw", "avx512_bf16": "avx512_bf16", "amx": "amx_bf16"}
"""What /proc/cpuinfo calls what a tier needs."""


def look(root: Path = cgroup.ROOT) -> list[Finding]:
    """The findings. Files are read under `root`."""
    topology = read_topology(root)
    return [_kernel(root), _cores(topology), _nodes(topology), *_governor(root)]


def _kernel(root: Path) -> Finding:
    name, flags = _model(root)
    try:
        tiers = native.available_tiers()
    except native.NativeUnavailableError as error:
        advice = f"install g++ and install again: `sudo apt install g++`, `{packages.how_to_install_again()}`"
        return warning("kernel", f"PyTorch's, which is slower on {name}: {error}", advice)
    if len(tiers) == 1:
        return warning(
            "kernel", f"PyTorch's: {name} has no AVX2", "the native kernels need an x86 processor of 2013 or later"
        )
    missing = [tier for tier, flag in _FLAGS.items() if flag in flags and tier not in tiers]
    if missing:
        return warning(
            "kernel",
            f"{tiers[-1]}, though {name} has {', '.join(missing)}",
            "the compiler was too old for these: install a newer g++ and install again",
        )
    return ok("kernel", f"{tiers[-1]} on {name} (of {', '.join(tiers[1:])})")


def _model(root: Path) -> tuple[str, set[str]]:
    fields: dict[str, str] = {}
    try:
        for line in (root / "proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        return "this processor", set()
    return fields.get("model name", "this processor"), set(fields.get("flags", "").split())


def _cores(topology: Topology) -> Finding:
    cpus = sorted(topology.nodes)
    if not cpus:
        return problem("cores", "this process may use no CPU", "look at the CPU set of its control group")
    cores = sum(rank == 0 for rank in topology.siblings.values())
    text = f"{len(cpus)} CPUs ({format_cpu_list(cpus)}) on {cores} cores"
    if math.isfinite(topology.quota):
        used = cgroup.within_quota(len(cpus), topology.quota)
        text += f", of which a quota pays for {topology.quota:g}"
        if used < len(cpus):
            return warning(
                "cores", f"{text}: {used} threads compute", "raise the quota (CPU_EXPERT_CPUS in compose.yaml)"
            )
    if len(cpus) < (os.cpu_count() or 0):
        return note("cores", f"{text} of {os.cpu_count()} in the machine", "taskset or a CPU set leaves out the others")
    return ok("cores", text)


def _nodes(topology: Topology) -> Finding:
    nodes = sorted(set(topology.nodes.values()))
    if len(nodes) == 1:
        return ok("NUMA", "one node")
    return note(
        "NUMA",
        f"{len(nodes)} nodes",
        "--weights ram (FIDDLER_CPU_WEIGHTS=ram) places each part of an expert near the threads that compute it",
    )


def _governor(root: Path) -> list[Finding]:
    try:
        governor = (root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return []
    if governor == "powersave" and not (root / "sys/devices/system/cpu/intel_pstate").exists():
        return [
            warning(
                "frequency",
                "the governor powersave",
                "`sudo cpupower frequency-set -g performance` runs the CPU faster",
            )
        ]
    return [ok("frequency", f"the governor {governor}")]
