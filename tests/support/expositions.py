"""Expositions in the services' text format, and a source that returns them in turn."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from client._errors import ClientError
from client.metrics.scrape import Exposition, parse

Counts = Sequence[Sequence[float]]
"""[layers][experts]."""

GPU_BUILD = 'fiddler_build_info{service="gpu_service",version="0.1.0"} 1\n'
CPU_BUILD = 'fiddler_build_info{service="cpu_expert_service",version="0.1.0"} 1\n'


def gpu_service(
    counts: Counts = (),
    *,
    routes: Sequence[Mapping[str, float]] = (),
    resident: Sequence[Sequence[int]] | None = None,
    histograms: Mapping[str, Mapping[str, float]] | None = None,
    start: float = 1000.0,
    **values: float,
) -> str:
    """An exposition of the GPU service.

    Args:
        counts: Selections by layer and expert.
        routes: For each layer the selections by route; by default all of counts are remote.
        resident: For each layer the experts on the device; None exports no flags.
        histograms: For each histogram, named without "fiddler_", its cumulative counts by bound.
        start: The process's start time.
        values: Other metrics, named without "fiddler_".
    """
    lines = [f"process_start_time_seconds {start}"]
    for layer, experts in enumerate(counts):
        for expert, count in enumerate(experts):
            labels = f'{{layer="{layer}",expert="{expert}"}}'
            lines.append(f"fiddler_expert_selections_by_expert_total{labels} {count}")
            if resident is not None:
                lines.append(f"fiddler_expert_resident{labels} {int(expert in resident[layer])}")
    for layer, by_route in enumerate(routes or [{"remote": sum(experts)} for experts in counts]):
        for route, count in by_route.items():
            lines.append(f'fiddler_expert_selections_total{{layer="{layer}",route="{route}"}} {count}')
    for name, buckets in (histograms or {}).items():
        lines += [f'fiddler_{name}_bucket{{le="{bound}"}} {count}' for bound, count in buckets.items()]
    lines += [f"fiddler_{name} {value}" for name, value in values.items()]
    return GPU_BUILD + "\n".join(lines) + "\n"


def cpu_expert_service(start: float = 1000.0, **values: float) -> str:
    """An exposition of the CPU expert service, with metrics named without "fiddler_expert_"."""
    lines = [
        f"process_start_time_seconds {start}",
        *(f"fiddler_expert_{name} {value}" for name, value in values.items()),
    ]
    return CPU_BUILD + "\n".join(lines) + "\n"


@dataclass
class Script:
    """A source of metrics that returns expositions, or raises errors, in turn.

    Attributes:
        answers: The expositions and errors.
        apart_seconds: The time between readings.
        url: The source's URL.
    """

    answers: Sequence[str | ClientError]
    apart_seconds: float = 2.0
    url: str = "http://127.0.0.1:9100/metrics"
    _turns: Iterator[tuple[int, str | ClientError]] = field(init=False)

    def __post_init__(self) -> None:
        self._turns = iter(enumerate(self.answers))

    def scrape(self, timeout_seconds: float) -> Exposition:
        """Returns the next exposition, or raises the next error."""
        turn, answer = next(self._turns)
        if isinstance(answer, ClientError):
            raise answer
        return parse(answer, turn * self.apart_seconds)
