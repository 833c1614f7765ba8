"""The results as a table for people, and as one JSON object."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from client import ModelInfo, ServerInfo
from fiddler_checkup.bench.bound import Bound, bound_of
from fiddler_checkup.bench.cases import Measurement
from fiddler_checkup.bench.words import explain, parts_of

_HEADINGS = ("test", "tokens/s", "lowest to highest", "memory's bound", "reached")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was measured, of what.

    Attributes:
        model: The model.
        server: The server.
        measurements: In the order of the cases.
    """

    model: ModelInfo
    server: ServerInfo
    measurements: Sequence[Measurement]

    @property
    def on_cpu(self) -> bool:
        """Whether the dense part is computed on the CPU."""
        return self.server.device.startswith("cpu")

    def bound(self, measurement: Measurement) -> Bound | None:
        """The memory's bound of one case."""
        return bound_of(measurement, self.model, on_cpu=self.on_cpu)

    @property
    def single(self) -> Measurement | None:
        """Decoding one stream, which is what "speed" means to people."""
        return next((each for each in self.measurements if not each.case.is_prefill and each.case.rows == 1), None)

    def title(self) -> str:
        """What was measured, in a line."""
        model, server = self.model, self.server
        return (
            f"{model.name} ({model.model_type}, {model.expert_bytes / 1e9:.3g} GB of experts, "
            f"{model.dense_memory_bytes / 1e9:.3g} GB else in {model.dense_format}, {model.dtype}) on {server.device}, "
            f"experts by {server.expert_kernel}"
        )

    def table(self) -> list[str]:
        """The lines of a table in Markdown, which terminals show well too."""
        rows = [_HEADINGS, *(self._row(measurement) for measurement in self.measurements)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
        lines = [
            f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in rows
        ]
        lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
        return lines

    def words(self) -> list[str]:
        """Whether the speed is normal; empty if one stream was not measured."""
        if (single := self.single) is None:
            return []
        return explain(
            single, self.bound(single), self.model, on_cpu=self.on_cpu, kernel=self.server.expert_kernel.lower()
        )

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "model": self.model.name,
            "model_type": self.model.model_type,
            "dtype": self.model.dtype,
            "dense_bytes": self.model.dense_bytes,
            "dense_format": self.model.dense_format,
            "dense_memory_bytes": self.model.dense_memory_bytes,
            "expert_bytes": self.model.expert_bytes,
            "device": self.server.device,
            "expert_kernel": self.server.expert_kernel,
            "version": self.server.version,
            "tests": [self._test(measurement) for measurement in self.measurements],
            "explanation": self.words(),
        }

    def _row(self, measurement: Measurement) -> tuple[str, ...]:
        bound = self.bound(measurement)
        low, high = measurement.spread
        return (
            measurement.case.name,
            f"{measurement.tokens_per_second:.4g}",
            f"{low:.4g} to {high:.4g}",
            "" if bound is None else f"{bound.tokens_per_second:.4g}",
            "" if bound is None else f"{measurement.tokens_per_second / bound.tokens_per_second:.0%}",
        )

    def _test(self, measurement: Measurement) -> dict[str, Any]:
        bound, case = self.bound(measurement), measurement.case
        return {
            "name": case.name,
            "prompt_tokens": case.prompt,
            "generated_tokens": case.generated,
            "streams": case.streams,
            "beams": case.beams,
            "tokens_per_second": measurement.tokens_per_second,
            "lowest": measurement.spread[0],
            "highest": measurement.spread[1],
            "bound_tokens_per_second": None if bound is None else bound.tokens_per_second,
            "reached": None if bound is None else measurement.tokens_per_second / bound.tokens_per_second,
            "seconds_by_part": {}
            if case.is_prefill
            else {part.name: part.seconds for part in parts_of(measurement, on_cpu=self.on_cpu)},
        }
