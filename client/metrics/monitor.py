"""Reads both services over time, keeps the readings of the window, and makes snapshots."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self

from client._errors import ClientError
from client.metrics import names
from client.metrics.experts import DecayedSelections, hottest, layers, route_shares
from client.metrics.rates import Growth, increase, quantiles
from client.metrics.scrape import Exposition
from client.metrics.snapshot import Bandwidth, Service, Snapshot


class Source(Protocol):
    """Where a service's metrics come from: an Endpoint, or a script in tests."""

    @property
    def url(self) -> str:
        """The URL of the metrics."""

    def scrape(self, timeout_seconds: float) -> Exposition:
        """Reads the metrics.

        Raises:
            ClientError: They cannot be read.
        """


class _Watched:
    """One service: its readings within the window, and why it does not answer."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.readings: list[Exposition] = []
        self.error: ClientError | None = None
        # the growth since its previous answer, however long ago that was
        self.latest_growth: Growth | None = None
        self._latest: Exposition | None = None

    def read(self, timeout_seconds: float, window_seconds: float) -> None:
        """Reads the service. An error is kept, and clears the window."""
        self.latest_growth = None
        try:
            reading = self.source.scrape(timeout_seconds)
        except ClientError as error:
            self.error = error
            self.readings.clear()
            return
        self.error = None
        if self._latest is not None:
            self.latest_growth = increase(self._latest, reading)
        self._latest = reading
        # The previous reading always stays: the other service may have delayed this one past the window.
        kept = [old for old in self.readings[:-1] if reading.at_seconds - old.at_seconds <= window_seconds]
        self.readings = [*kept, *self.readings[-1:], reading]

    @property
    def now(self) -> Exposition | None:
        """The latest reading; None if the service did not answer."""
        return self.readings[-1] if self.error is None else None

    @property
    def growth(self) -> Growth | None:
        """The growth within the window; None without two readings."""
        if self.error is not None or len(self.readings) < 2:
            return None
        return increase(self.readings[0], self.readings[-1])

    @property
    def state(self) -> Service:
        """Whether it answered."""
        return Service(self.source.url, self.error.message if self.error else None)


class Monitor:
    """Reads both services, each in a thread of its own."""

    def __init__(
        self,
        gpu_service: Source | None,
        cpu_expert_service: Source | None,
        *,
        interval_seconds: float,
        window_seconds: float,
        half_life_seconds: float,
        timeout_seconds: float,
    ) -> None:
        """Prepares; nothing is read yet.

        Args:
            gpu_service: Where the GPU service's metrics come from; None leaves it out.
            cpu_expert_service: The same for the CPU expert service.
            interval_seconds: How often sample() will be called.
            window_seconds: The time before the latest reading that rates cover, at least one interval.
            half_life_seconds: The age at which a selection counts half in the decayed map.
            timeout_seconds: How long to wait for a service's answer.
        """
        self._gpu = _Watched(gpu_service) if gpu_service else None
        self._cpu = _Watched(cpu_expert_service) if cpu_expert_service else None
        self._watched = [watched for watched in (self._gpu, self._cpu) if watched]
        # half an interval more, since readings are never exactly on time
        self._window_seconds = max(window_seconds, interval_seconds) + interval_seconds / 2
        self._decayed = DecayedSelections(half_life_seconds)
        self._timeout_seconds = timeout_seconds
        self._threads = ThreadPoolExecutor(2, "scrape")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def num_services(self) -> int:
        """How many services are read."""
        return len(self._watched)

    @property
    def errors(self) -> Sequence[ClientError]:
        """Why services did not answer the latest reading."""
        return [watched.error for watched in self._watched if watched.error]

    def sample(self) -> Snapshot:
        """Reads both services and returns what is known now."""
        list(self._threads.map(lambda each: each.read(self._timeout_seconds, self._window_seconds), self._watched))
        if self._gpu and self._gpu.latest_growth:
            self._decayed.add(self._gpu.latest_growth)
        return self._snapshot(self._gpu.now if self._gpu else None, self._gpu.growth if self._gpu else None)

    def _snapshot(self, now: Exposition | None, growth: Growth | None) -> Snapshot:
        degraded = now.value(names.DEGRADED) if now else None
        by_layer = layers(now, growth, self._decayed) if now else []
        return Snapshot(
            time=time.time(),
            window_seconds=growth.seconds if growth else None,
            gpu_service=self._gpu.state if self._gpu else None,
            cpu_expert_service=self._cpu.state if self._cpu else None,
            degraded=None if degraded is None else degraded > 0,
            tokens_per_second=_rate(growth, names.GENERATION_TOKENS),
            prompt_tokens_per_second=_rate(growth, names.PROMPT_TOKENS),
            running=now.value(names.RUNNING) if now else None,
            waiting=now.value(names.WAITING) if now else None,
            time_to_first_token_seconds=quantiles(growth, names.TIME_TO_FIRST_TOKEN) if growth else None,
            inter_token_seconds=quantiles(growth, names.INTER_TOKEN) if growth else None,
            routes=route_shares(by_layer),
            swaps=growth.value(names.SWAPS) if growth else None,
            layers=by_layer,
            hottest=hottest(now, by_layer) if now else [],
            bandwidth=self._bandwidth(),
        )

    def _bandwidth(self) -> Bandwidth:
        now, growth = (self._cpu.now, self._cpu.growth) if self._cpu else (None, None)
        read_bytes = growth.value(names.READ_BYTES) if growth else None
        read_seconds = growth.value(names.READ_SECONDS) if growth else None
        return Bandwidth(
            achieved_bytes_per_second=read_bytes / read_seconds if read_bytes and read_seconds else None,
            measured_bytes_per_second=now.value(names.MEMORY_READ_BANDWIDTH) if now else None,
            busy=_rate(growth, names.COMPUTE_SECONDS),
        )


def _rate(growth: Growth | None, name: str) -> float | None:
    counted = growth.value(name) if growth else None
    return counted / growth.seconds if growth and counted is not None else None
