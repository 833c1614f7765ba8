"""What health checks, metrics and the log report about the CPU expert service."""

import asyncio
import threading
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from grpc_health.v1 import health, health_pb2
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from gpu_service.api.expert_health import SERVICE, ExpertHealth
from gpu_service.errors import ExpertServiceError, HandshakeError

GONE = ExpertServiceError("UNAVAILABLE: it is gone")
ANOTHER = HandshakeError("dtype: the caller expects float32, and the CPU expert service has bfloat16")


async def _serving(servicer: health.aio.HealthServicer) -> bool:
    answer = await servicer.Check(health_pb2.HealthCheckRequest(service=SERVICE), Mock())
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _metrics() -> dict[str, float]:
    names = ("degraded", "expert_service_up", "expert_service_losses_total", "expert_service_reconnects_total")
    return {name: REGISTRY.get_sample_value(f"fiddler_{name}") or 0.0 for name in names}


async def test_health_and_metrics_follow_the_service() -> None:
    servicer = health.aio.HealthServicer()
    reported = ExpertHealth(servicer)
    before = _metrics()
    rows = []
    for error in (GONE, None, GONE, ANOTHER, None):
        await reported.report(error)
        now = _metrics()
        losses, reconnects = (
            now[name] - before[name] for name in ("expert_service_losses_total", "expert_service_reconnects_total")
        )
        rows.append((await _serving(servicer), now["expert_service_up"], now["degraded"], losses, reconnects))
    assert rows == [
        (False, 0, 0, 0, 0),  # it has not been there yet: nothing is lost
        (True, 1, 0, 0, 0),
        (False, 0, 1, 1, 0),
        (False, 0, 1, 1, 0),  # still the same loss
        (True, 1, 0, 1, 1),
    ]


async def test_the_log_has_a_line_for_each_change() -> None:
    reported = ExpertHealth(health.aio.HealthServicer())
    with capture_logs() as lines:
        for error in (None, GONE, ANOTHER, None):
            await reported.report(error)
    assert [(line["log_level"], line.get("reason")) for line in lines] == [
        ("warning", str(GONE)),
        ("error", str(ANOTHER)),
        ("info", None),
    ]


async def test_seconds_without_the_service_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("gpu_service.api.expert_health.time", SimpleNamespace(monotonic=lambda: now))
    reported = ExpertHealth(health.aio.HealthServicer())
    await reported.report(None)
    seen = []
    for seconds, error in ((10, GONE), (3, ANOTHER), (4, None), (50, GONE), (2, None), (5, None)):
        now += seconds
        await reported.report(error)
        seen.append(reported.degraded_seconds())
    assert seen == [0, 3, 7, 7, 9, 9]
    await reported.report(GONE)
    now += 1.5
    assert reported.degraded_seconds() == 10.5, "the present one counts while it lasts"


async def test_any_thread_may_tell() -> None:
    servicer = health.aio.HealthServicer()
    reported = ExpertHealth(servicer)
    await reported.report(None)
    thread = threading.Thread(target=reported.changed, args=(GONE,))
    thread.start()
    thread.join()
    async with asyncio.timeout(20):
        while await _serving(servicer):
            await asyncio.sleep(0.01)
