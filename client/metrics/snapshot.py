"""What is known about both services at one moment. None means not exported, or not seen yet."""

from dataclasses import dataclass

ROUTES = ("resident", "streamed", "remote")
"""Where an expert is computed: on the device from a resident copy, on the device after copying it there, or by the CPU
expert service."""


@dataclass(frozen=True, slots=True)
class Service:
    """Whether one service answered.

    Attributes:
        url: The URL of its metrics.
        error: Why it did not answer; None if it did.
    """

    url: str
    error: str | None


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Quantiles in seconds, interpolated within a histogram's buckets."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """How often the experts of one decoder layer were selected; one token at top-2 counts 2.

    Attributes:
        layer: The index of the decoder layer.
        routes: Selections within the window by route.
        selections: Selections within the window, [experts].
        decayed_selections: All selections seen so far, older ones weighted less, [experts].
        imbalance: The busiest expert's selections divided by the mean, within the window; 1 is even. If the service
            does not export selections by expert, this is the service's own figure, over a window of its own.
        resident: The experts that are resident on the device.
        num_resident: How many those are.
        experts_per_band: 1, or more if the service exports selections by band only: neighbouring experts, among which
            the selections of their band are divided evenly.
    """

    layer: int
    routes: dict[str, float] | None
    selections: list[float] | None
    decayed_selections: list[float] | None
    imbalance: float | None
    resident: list[int] | None
    num_resident: int | None
    experts_per_band: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HotExpert:
    """An expert that is selected often.

    Attributes:
        layer: Its decoder layer.
        expert: Its index.
        share: Its share of the layer's selections within the window.
        resident: Whether it is resident on the device.
    """

    layer: int
    expert: int
    share: float
    resident: bool | None


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """How fast the CPU expert service reads weights.

    Attributes:
        achieved_bytes_per_second: The rate within the window, over messages with so few rows that reading weights
            dominates.
        measured_bytes_per_second: The limit: the rate that its threads measured at start-up by reading alone, or by the
            kernel if that was faster.
        busy: The share of the window in which it computed.
    """

    achieved_bytes_per_second: float | None
    measured_bytes_per_second: float | None
    busy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Both services at one moment.

    Attributes:
        time: Seconds since the epoch.
        window_seconds: The time that rates, shares and quantiles cover; None until there are two readings.
        gpu_service: Whether the GPU service answered; None if it is left out.
        cpu_expert_service: The same for the CPU expert service.
        degraded: Whether the GPU service runs without the CPU expert service.
        tokens_per_second: Generated tokens.
        prompt_tokens_per_second: Prompt tokens of the requests that arrived.
        running: Requests being computed.
        waiting: Requests that wait for a slot.
        time_to_first_token_seconds: Quantiles within the window.
        inter_token_seconds: Quantiles within the window.
        routes: Each route's share of all selections within the window; None if there were no selections.
        swaps: How many experts replaced another one on the device within the window.
        layers: All layers, ascending.
        hottest: The experts with the largest shares of their layers' selections, largest first.
        bandwidth: The memory bandwidth of the CPU expert service.
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
