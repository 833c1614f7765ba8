"""What both services counted on their /metrics between two moments."""

import urllib.request
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

_SECONDS: Final = 10.0
PARTS: Final = ("cpu", "hop", "gpu")
"""Parts of a MoE layer, as fiddler_layer_actual_seconds_total names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Sums over all layers, since the services started or between two readings.

    Attributes:
        parts: Seconds of each part of the MoE layers; they overlap.
        layer_seconds: Seconds of the MoE layers, in steps of both kinds.
        step_seconds: Seconds of the model's steps that decode.
        prefill_seconds: Seconds of its steps that compute prompts.
        routes: Selections of experts by where they were computed.
        read_bytes: Weights that the CPU expert service read for messages with few rows.
        read_seconds: The time of those messages.
        limit: Bytes per second that memory can be read with at most, as measured at the start; 0 if unknown.
    """

    parts: dict[str, float]
    layer_seconds: float
    step_seconds: float
    prefill_seconds: float
    routes: dict[str, float]
    read_bytes: float
    read_seconds: float
    limit: float

    def __sub__(self, before: "Counters") -> "Counters":
        return Counters(
            parts={part: self.parts[part] - before.parts[part] for part in PARTS},
            layer_seconds=self.layer_seconds - before.layer_seconds,
            step_seconds=self.step_seconds - before.step_seconds,
            prefill_seconds=self.prefill_seconds - before.prefill_seconds,
            routes={route: count - before.routes.get(route, 0) for route, count in self.routes.items()},
            read_bytes=self.read_bytes - before.read_bytes,
            read_seconds=self.read_seconds - before.read_seconds,
            limit=self.limit,
        )

    @property
    def remote_share(self) -> float:
        """The share of selections that were computed by the CPU expert service; 1 if none is counted."""
        total = sum(self.routes.values())
        return self.routes.get("remote", 0.0) / total if total else 1.0


class Readings:
    """Reads both services' metrics."""

    def __init__(self, gpu_metrics: str, cpu_metrics: str) -> None:
        """Reads nothing yet. Both are HOST:PORT."""
        self._addresses = (gpu_metrics, cpu_metrics)
        # not through a proxy that the environment sets, which would look on its own host
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def read(self) -> Counters:
        """The counters as they are now.

        Raises:
            OSError: A service does not answer.
        """
        samples = [self._samples(address) for address in self._addresses]
        gpu, cpu = samples
        return Counters(
            parts={part: _sum(gpu, "fiddler_layer_actual_seconds_total", part=part) for part in PARTS},
            layer_seconds=_sum(gpu, "fiddler_layer_seconds_total"),
            step_seconds=_sum(gpu, "fiddler_step_seconds_sum", phase="decode"),
            prefill_seconds=_sum(gpu, "fiddler_step_seconds_sum", phase="prefill"),
            routes={
                route: _sum(gpu, "fiddler_expert_selections_total", route=route)
                for route in ("resident", "streamed", "remote")
            },
            read_bytes=_sum(cpu, "fiddler_expert_weight_read_bytes_total"),
            read_seconds=_sum(cpu, "fiddler_expert_weight_read_seconds_total"),
            limit=_sum(cpu, "fiddler_expert_memory_read_bytes_per_second"),
        )

    def _samples(self, address: str) -> list[tuple[str, dict[str, str], float]]:
        with self._opener.open(f"http://{address}/metrics", timeout=_SECONDS) as answer:
            text = answer.read().decode()
        families = text_string_to_metric_families(text)
        return [(each.name, dict(each.labels), each.value) for family in families for each in family.samples]


def _sum(samples: list[tuple[str, dict[str, str], float]], name: str, **labels: str) -> float:
    """Of all samples of that name that have those labels."""
    wanted = labels.items()
    return sum(value for each, has, value in samples if each == name and wanted <= has.items())
