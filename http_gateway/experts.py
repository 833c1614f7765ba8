"""What the experts do now, from both services' /metrics."""

import asyncio
import dataclasses
import time
from typing import Any

from client import ClientError
from client.metrics.monitor import Monitor
from client.metrics.scrape import Endpoint
from fiddler.errors import UserError
from http_gateway.settings import NONE

_INTERVAL_SECONDS = 0.9
_WINDOW_SECONDS = 4.0
_HALF_LIFE_SECONDS = 15.0
_TIMEOUT_SECONDS = 2.0


class ExpertsFeed:
    """Reads the services' metrics while somebody asks for them, at most about once a second, however many ask."""

    def __init__(self, gpu_metrics: str, cpu_metrics: str) -> None:
        """Checks the addresses. Nothing is read yet.

        Raises:
            UserError: One of them is neither a URL nor HOST:PORT nor "none".
        """
        self._monitor = Monitor(
            _endpoint("--gpu-metrics", "gpu_service", gpu_metrics),
            _endpoint("--cpu-metrics", "cpu_expert_service", cpu_metrics),
            interval_seconds=_INTERVAL_SECONDS,
            window_seconds=_WINDOW_SECONDS,
            half_life_seconds=_HALF_LIFE_SECONDS,
            timeout_seconds=_TIMEOUT_SECONDS,
        )
        self._lock = asyncio.Lock()
        self._latest: dict[str, Any] = {}
        self._read_at = -_INTERVAL_SECONDS

    async def latest(self) -> dict[str, Any]:
        """The fields of client.metrics.snapshot.Snapshot."""
        async with self._lock:
            if time.monotonic() - self._read_at >= _INTERVAL_SECONDS:
                self._latest = dataclasses.asdict(await asyncio.to_thread(self._monitor.sample))
                self._read_at = time.monotonic()
            return self._latest

    def close(self) -> None:
        """Ends the reading threads."""
        self._monitor.__exit__(None, None, None)


def _endpoint(flag: str, service: str, address: str) -> Endpoint | None:
    try:
        return None if address == NONE else Endpoint(flag, service, address)
    except ClientError as error:
        raise UserError(error.message) from None
