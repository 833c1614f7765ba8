"""Reports to health checks, metrics and the log whether the CPU expert service is in use.

The GPU service serves with or without it: it computes the same tokens, only slower. So the GPU service's health has an
entry of its own for the CPU expert service, fiddler.v1.ExpertService.
"""

import asyncio
import time

import structlog
from grpc_health.v1 import health, health_pb2

from fiddler.v1 import experts_pb2
from gpu_service import metrics
from gpu_service.errors import ExpertServiceError, HandshakeError

SERVICE = experts_pb2.DESCRIPTOR.services_by_name["ExpertService"].full_name

_log = structlog.get_logger("gpu_service")


class ExpertHealth:
    """Whether the CPU expert service is in use. Made in the event loop that serves health checks."""

    def __init__(self, servicer: health.aio.HealthServicer) -> None:
        """Reports nothing yet.

        Args:
            servicer: Answers health checks.
        """
        self._servicer = servicer
        self._loop = asyncio.get_running_loop()
        self._used_before = False
        self._lost_at: float | None = None
        self._degraded_seconds = 0.0

    def changed(self, error: ExpertServiceError | None) -> None:
        """Reports that the service is in use, or the error why it is not. For any thread; does not wait."""
        asyncio.run_coroutine_threadsafe(self.report(error), self._loop)

    async def report(self, error: ExpertServiceError | None) -> None:
        """As `changed`, in the event loop's thread: reported on return."""
        if error is None:
            self._found()
        else:
            self._not_in_use(error)
        metrics.EXPERT_SERVICE_UP.set(error is None)
        status = health_pb2.HealthCheckResponse.NOT_SERVING if error else health_pb2.HealthCheckResponse.SERVING
        await self._servicer.set(SERVICE, status)

    def degraded_seconds(self) -> float:
        """How long the service has been lost in total, up to now. For any thread."""
        lost_at = self._lost_at
        return self._degraded_seconds + (0.0 if lost_at is None else time.monotonic() - lost_at)

    def _found(self) -> None:
        if self._lost_at is not None:
            seconds = time.monotonic() - self._lost_at
            self._lost_at, self._degraded_seconds = None, self._degraded_seconds + seconds
            metrics.EXPERT_SERVICE_RECONNECTS.inc()
            metrics.DEGRADED.set(0)
            _log.info("CPU expert service reconnected", degraded_seconds=round(seconds, 3))
        self._used_before = True

    def _not_in_use(self, error: ExpertServiceError) -> None:
        if self._used_before and self._lost_at is None:
            self._lost_at = time.monotonic()
            metrics.EXPERT_SERVICE_LOSSES.inc()
            metrics.DEGRADED.set(1)
            _log.warning("CPU expert service lost; computing its experts here", reason=str(error))
        if isinstance(error, HandshakeError):
            _log.error("CPU expert service rejected", reason=str(error))
