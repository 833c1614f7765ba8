"""Expositions made by hand, in the text format that the services answer with, and sources that give them in turn."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from client._errors import ClientError
from client.top.scrape import Exposition, parse

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
    """What the GPU service exports.

    Args:
        counts: Selections by layer and expert.
        routes: By layer, selections by route; all of counts by the remote one unless said.
        resident: By layer, the experts on the device; None exports no flags.
        histograms: Cumulative counts by bound, by the histogram's name without "fiddler_".
        start: When its process started.
        values: Others, by their names without "fiddler_".
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
    """What the CPU expert service exports; values by their names without "fiddler_expert_"."""
    lines = [
        f"process_start_time_seconds {start}",
        *(f"fiddler_expert_{name} {value}" for name, value in values.items()),
    ]
    return CPU_BUILD + "\n".join(lines) + "\n"


@dataclass
class Script:
    """A source that answers with one exposition after the other, or with an error, some seconds apart."""

    answers: Sequence[str | ClientError]
    apart_seconds: float = 2.0
    url: str = "http://127.0.0.1:9100/metrics"
    _turns: Iterator[tuple[int, str | ClientError]] = field(init=False)

    def __post_init__(self) -> None:
        self._turns = iter(enumerate(self.answers))

    def scrape(self, timeout_seconds: float) -> Exposition:
        turn, answer = next(self._turns)
        if isinstance(answer, ClientError):
            raise answer
        return parse(answer, turn * self.apart_seconds)
