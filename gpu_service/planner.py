"""Decides, for one MoE layer and batch, where each expert is computed. Pure Python; no torch.

The decision minimises max(remote seconds, resident + streamed seconds), since the two sides run at the same time
(Fiddler, ICLR 2025, section 3.2, minimises their sum). With no expert on the GPU and no way to bring one there, the one
possible plan is to compute all of them remotely: that is the plan made here until the GPU holds experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the experts that a batch needs are computed. Each is in exactly one list, ascending."""

    resident: tuple[int, ...]
    """On the GPU, from weights that lie there."""
    streamed: tuple[int, ...]
    """On the GPU, from weights that are copied there for this batch."""
    remote: tuple[int, ...]
    """By the CPU expert service."""


def plan(counts: Sequence[int]) -> Plan:
    """Plans one layer.

    Args:
        counts: How many rows each expert of the layer has, by expert id.
    """
    return Plan(resident=(), streamed=(), remote=tuple(expert for expert, count in enumerate(counts) if count))
