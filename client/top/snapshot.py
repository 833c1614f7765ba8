"""What is known of both services at one moment. None stands for what is not exported, or has not been seen yet."""

from dataclasses import dataclass

ROUTES = ("resident", "streamed", "remote")
"""Where an expert is computed: on the device, which holds it; there, once it was copied; by the CPU expert service."""


@dataclass(frozen=True, slots=True)
class Service:
    """One service as it was asked.

    Attributes:
        url: Where.
        error: Why it did not answer; None where it did.
    """

    url: str
    error: str | None


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of seconds, from a histogram's buckets, within which they are interpolated."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Layer:
    """Which experts of one decoder layer were chosen; one token at top-2 counts 2.

    Attributes:
        layer: Which.
        routes: Selections within the window by route.
        selections: Selections within the window, [experts].
        decayed_selections: All that were seen, the older ones counting less, [experts].
        imbalance: The busiest expert's selections over the mean, within the window; where the service does not export
            selections by expert, its own figure, of a window of its own. 1 is even.
        resident: Which experts lie on the device.
        num_resident: How many.
    """

    layer: int
    routes: dict[str, float] | None
    selections: list[float] | None
    decayed_selections: list[float] | None
    imbalance: float | None
    resident: list[int] | None
    num_resident: int | None


@dataclass(frozen=True, slots=True)
class HotExpert:
    """An expert that is chosen often.

    Attributes:
        layer: Its decoder layer.
        expert: Its index.
        share: Of the layer's selections within the window.
        resident: Whether it lies on the device.
    """

    layer: int
    expert: int
    share: float
    resident: bool | None


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """How fast the CPU expert service reads weights.

    Attributes:
        achieved_bytes_per_second: In the window's messages that have so few rows that reading weights takes the time.
        measured_bytes_per_second: What its threads read at start-up, computing nothing: the limit.
        busy: The share of the window in which it computed.
    """

    achieved_bytes_per_second: float | None
    measured_bytes_per_second: float | None
    busy: float | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Both services at one moment.

    Attributes:
        time: Seconds since the epoch.
        window_seconds: What rates, shares and quantiles are of; None where there is nothing to compare with yet.
        gpu_service: Whether it answered; None where it is not asked.
        cpu_expert_service: The same of the other one.
        degraded: Whether the GPU service goes on without the CPU expert service.
        tokens_per_second: Tokens generated.
        prompt_tokens_per_second: Prompt tokens of the requests that came.
        running: Requests being computed.
        waiting: Requests that wait for a slot.
        time_to_first_token_seconds: Of the window.
        inter_token_seconds: Of the window.
        routes: Shares of all selections within the window by route; None where there were none.
        swaps: Experts that came to lie on the device, in another's place, within the window.
        layers: By layer, ascending.
        hottest: Those with the largest share of their layer's selections, the hottest first.
        bandwidth: Of the CPU expert service.
    """

    time: float
    window_seconds: float | None
    gpu_service: Service | None
    cpu_expert_service: Service | None
    degraded: bool | None
    tokens_per_second: float | None
    prompt_tokens_per_second: float | None
    running: float | None
    waiting: float | None
    time_to_first_token_seconds: Quantiles | None
    inter_token_seconds: Quantiles | None
    routes: dict[str, float] | None
    swaps: float | None
    layers: list[Layer]
    hottest: list[HotExpert]
    bandwidth: Bandwidth
