"""The simulated machines: machines/NAME.json, where every figure has its source.

Figures are peaks of datasheets, with a share that is assumed to be achievable. None was fitted to a result of the
simulator.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

_PROFILES = Path(__file__).with_name("machines")


@dataclass(frozen=True, slots=True)
class Machine:
    """Achievable figures of a machine."""

    name: str
    title: str
    gpu_memory_bytes: float
    gpu_budget_bytes: float
    """The part that the server may use."""
    gpu_bytes_per_second: float
    gpu_bf16_flops: float
    pcie_bytes_per_second: float
    """From pinned memory to the GPU."""
    cpu_bytes_per_second: float
    cpu_flops: float
    """Of bfloat16 products, with the best instructions of the CPU."""
    round_trip_seconds: float
    """Of a message to the CPU expert service that computes nothing."""
    hop_bytes_per_second: float
    """Of larger messages, bytes of both directions added."""
    launch_seconds: float
    """Host time of one eager operation on the GPU."""
    sync_seconds: float
    """A small device-to-host copy and the wait for it."""


_FIGURES = [field.name for field in fields(Machine) if field.name not in ("name", "title")]


def load(name: str) -> Machine:
    """Reads one profile. Peaks are multiplied by their achievable share."""
    profile = json.loads((_PROFILES / f"{name}.json").read_text())
    figures = {figure: profile[figure]["value"] * profile[figure].get("achievable", 1.0) for figure in _FIGURES}
    return Machine(name, profile["title"], **figures)


def names() -> list[str]:
    """Names of all profiles, those of Fiddler's paper first."""
    found = {path.stem for path in _PROFILES.glob("*.json")}
    known = [name for name in ("quadro_rtx_6000", "l4", "rtx_4090", "h200") if name in found]
    return known + sorted(found.difference(known))


def sources(name: str) -> Iterator[tuple[str, str]]:
    """Each figure of a profile and its source."""
    profile = json.loads((_PROFILES / f"{name}.json").read_text())
    for figure in _FIGURES:
        yield figure, profile[figure]["source"]
