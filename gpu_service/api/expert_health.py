"""Tells health, metrics and the log whether the CPU expert service is in use. It decides nothing.

The GPU service serves either way, since it computes without the experts what it computed with them, only slower. So
this is a service of its own in health: fiddler.v1.ExpertService, as asked of the GPU service.
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


class Availability:
    """What is known of the CPU expert service. Made in the event loop that serves health."""

    def __init__(self, servicer: health.aio.HealthServicer) -> None:
        """Tells nothing yet.

        Args:
            servicer: Answers health checks.
        """
        self._servicer = servicer
        self._loop = asyncio.get_running_loop()
        self._used_before = False
        self._lost_at: float | None = None
        self._degraded_seconds = 0.0

    def changed(self, error: ExpertServiceError | None) -> None:
        """The service is in use from now on, or is not because of the error. For any thread, and returns at once."""
        asyncio.run_coroutine_threadsafe(self.tell(error), self._loop)

    async def tell(self, error: ExpertServiceError | None) -> None:
        """As `changed`, for the event loop's own thread: told when it returns."""
        if error is None:
            self._found()
        else:
            self._not_in_use(error)
        metrics.EXPERT_SERVICE_UP.set(error is None)
        status = health_pb2.HealthCheckResponse.NOT_SERVING if error else health_pb2.HealthCheckResponse.SERVING
        await self._servicer.set(SERVICE, status)

    def degraded_seconds(self) -> float:
        """For how long the service was lost, all times together and the present one included. For any thread."""
        lost_at = self._lost_at
        return self._degraded_seconds + (0.0 if lost_at is None else time.monotonic() - lost_at)

    def _found(self) -> None:
        if self._lost_at is not None:
            seconds = time.monotonic() - self._lost_at
            self._lost_at, self._degraded_seconds = None, self._degraded_seconds + seconds
            metrics.EXPERT_SERVICE_RECONNECTS.inc()
            metrics.DEGRADED.set(0)
            _log.info("the CPU expert service is back", degraded_seconds=round(seconds, 3))
        self._used_before = True

    def _not_in_use(self, error: ExpertServiceError) -> None:
        if self._used_before and self._lost_at is None:
            self._lost_at = time.monotonic()
            metrics.EXPERT_SERVICE_LOSSES.inc()
            metrics.DEGRADED.set(1)
            _log.warning("the CPU expert service is lost; going on without it", reason=str(error))
        if isinstance(error, HandshakeError):
            _log.error("another CPU expert service is there; it is not used", reason=str(error))
