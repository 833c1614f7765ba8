"""The GPU service's metrics."""

from collections.abc import Callable, Iterable

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from fiddler.metrics import LATENCY_BUCKETS
from gpu_service.request import Sequence
from gpu_service.selection_counts import SelectionCounts

_TIME_TO_FIRST_TOKEN_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
_INTER_TOKEN_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip

REQUESTS = Counter(
    "fiddler_requests_total", "Generations that ended, by finish reason; failed ones as error.", ["finish_reason"]
)
PROMPT_TOKENS = Counter("fiddler_prompt_tokens_total", "Prompt tokens of requests that were well-formed.")
GENERATION_TOKENS = Counter("fiddler_generation_tokens_total", "Tokens generated.")
TIME_TO_FIRST_TOKEN = Histogram(
    "fiddler_time_to_first_token_seconds",
    "Seconds from a request's arrival to its first token.",
    buckets=_TIME_TO_FIRST_TOKEN_BUCKETS,
)
INTER_TOKEN_LATENCY = Histogram(
    "fiddler_inter_token_latency_seconds", "Seconds between two tokens of a generation.", buckets=_INTER_TOKEN_BUCKETS
)
EXPERT_CALL_SECONDS = Histogram(
    "fiddler_expert_call_seconds",
    "Seconds from sending a layer's rows to the CPU expert service until its answer is joined.",
    buckets=LATENCY_BUCKETS,
)
EXPERT_CALL_BYTES = Counter(
    "fiddler_expert_call_bytes_total", "Bytes exchanged with the CPU expert service.", ["direction"]
)
EXPERT_CALL_FAILURES = Counter(
    "fiddler_expert_call_failures_total", "Calls to the CPU expert service that failed, by gRPC status code.", ["code"]
)
EXPERT_SERVICE_UP = Gauge("fiddler_expert_service_up", "1 while the CPU expert service is in use, else 0.")
EXPERT_SERVICE_LOSSES = Counter(
    "fiddler_expert_service_losses_total", "Times that the CPU expert service was lost after it had been in use."
)
EXPERT_SERVICE_RECONNECTS = Counter(
    "fiddler_expert_service_reconnects_total", "Times that the CPU expert service was in use again after a loss."
)
REPLANNED_LAYERS = Counter(
    "fiddler_replanned_layers_total", "Messages to the CPU expert service whose experts were computed here instead."
)
SPOILED_ROWS = Counter(
    "fiddler_spoiled_rows_total",
    "Rows that the CPU expert service answered with numbers that are not finite; their requests failed.",
)
REMOTE_SECONDS = Counter(
    "fiddler_remote_compute_seconds_total",
    "Seconds that the CPU expert service computed, as predicted from measured costs and as they were.",
    ["kind"],
)
PLACEMENT_SWAPS = Counter(
    "fiddler_placement_swaps_total", "Experts that the placement policy had copied to the device in the background."
)
PREFETCH_GUESSES = Counter(
    "fiddler_prefetch_guesses_total", "Experts that a layer was guessed to want, by whether it did.", ["outcome"]
)
PREFETCHED_EXPERTS = Counter(
    "fiddler_prefetched_experts_total", "Experts copied ahead of their layer, by whether they were used.", ["outcome"]
)
DEGRADED = Gauge(
    "fiddler_degraded", "1 while the CPU expert service is lost and its experts are computed here, else 0."
)


def observe_token(sequence: Sequence, now: float) -> None:
    """Counts a token that a sequence was given at time.monotonic() == now, before its own times are updated."""
    GENERATION_TOKENS.inc()
    if sequence.request.first_token_at is None:
        TIME_TO_FIRST_TOKEN.observe(now - sequence.request.submitted_at)
    if sequence.last_token_at is not None:
        INTER_TOKEN_LATENCY.observe(now - sequence.last_token_at)


class SelectionCollector(Collector):
    """Publishes how often experts were chosen, when asked."""

    def __init__(self, selections: SelectionCounts, decoder_layers: list[int]) -> None:
        self._selections = selections
        self._decoder_layers = decoder_layers

    def collect(self) -> Iterable[Metric]:
        """Yields the counters by layer and route, and by layer and expert."""
        by_route = CounterMetricFamily(
            "fiddler_expert_selections",
            "Experts chosen for tokens, by where they were computed; one token at top-2 counts 2.",
            labels=["layer", "route"],
        )
        by_expert = CounterMetricFamily(
            "fiddler_expert_selections_by_expert",
            "Experts chosen for tokens, by expert; one token at top-2 counts 2.",
            labels=["layer", "expert"],
        )
        for layer, routes in zip(self._decoder_layers, self._selections.read_routes(), strict=True):
            for route, total in routes.items():
                by_route.add_metric([str(layer), route], total)
        for layer, counts in zip(self._decoder_layers, self._selections.read(), strict=True):
            for expert, count in enumerate(counts):
                by_expert.add_metric([str(layer), str(expert)], count)
        yield by_route
        yield by_expert


class _DegradedSeconds(Collector):
    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(
            "fiddler_degraded_seconds",
            "Seconds without the CPU expert service, the present ones included.",
            self._seconds(),
        )


def publish_degraded(seconds: Callable[[], float]) -> None:
    """Publishes for how long the CPU expert service was lost, read at scrape time."""
    REGISTRY.register(_DegradedSeconds(seconds))


def publish_queue(num_running: Callable[[], int], num_waiting: Callable[[], int]) -> None:
    """Publishes how many requests have a slot and how many wait, read at scrape time."""
    Gauge("fiddler_requests_running", "Requests being computed.").set_function(num_running)
    Gauge("fiddler_requests_waiting", "Requests that wait for a slot.").set_function(num_waiting)


def publish_selections(selections: SelectionCounts, decoder_layers: list[int]) -> None:
    """Registers the collector of expert selections."""
    REGISTRY.register(SelectionCollector(selections, decoder_layers))
