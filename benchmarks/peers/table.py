"""The comparison as one table of text."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.harness.results import quantile


@dataclass(slots=True)
class Measured:
    """One system's samples, one for each round."""

    format: str
    """Of its weights, for people."""
    decode: list[float] = field(default_factory=list)
    """Tokens per second after the first."""
    prefill: list[float] = field(default_factory=list)
    """Prompt tokens per second."""
    memory_bytes: int = 0
    weight_bytes: int = 0
    """That computing one token reads."""


def table(systems: Mapping[str, Measured], failures: Mapping[str, str], bytes_per_second: float) -> str:
    """A line for each system, and one for each that could not be measured.

    Args:
        systems: By name.
        failures: Why others are missing, by name.
        bytes_per_second: What the memory was read with.
    """
    rows = [("system", "weights", "decode, tokens/s", "of the bandwidth", "prefill of 512, tokens/s", "memory, GB")]
    for name, measured in systems.items():
        share = measured.weight_bytes * statistics.median(measured.decode) / bytes_per_second
        rows.append(
            (
                name,
                measured.format,
                spread(measured.decode),
                f"{share:.2f}",
                spread(measured.prefill),
                f"{measured.memory_bytes / 1e9:.1f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{name}: not measured: {reason}" for name, reason in failures.items()]
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """The median, and the 10th to 90th percentile."""
    ordered = sorted(values)
    low, middle, high = quantile(ordered, 0.1), statistics.median(ordered), quantile(ordered, 0.9)
    return f"{_short(middle)} ({_short(low)} to {_short(high)})"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
