"""/health, /metrics and /experts."""

from grpc_health.v1 import health_pb2
from starlette.testclient import TestClient

from tests.support.fake_server import FakeServer, serving
from tests.support.http_gateways import calling


def test_health_is_the_services(http: TestClient, server: FakeServer) -> None:
    assert (http.get("/health").status_code, http.get("/health").json()) == (200, {"status": "SERVING"})
    with serving() as ill, calling(ill.target) as other:
        ill.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        answer = other.get("/health")
        assert (answer.status_code, answer.json()) == (503, {"status": "NOT_SERVING"})


def test_metrics_are_prometheus(http: TestClient) -> None:
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "# TYPE fiddler_http_requests_total counter" in answer.text


def test_experts_without_metrics_to_read_are_an_empty_answer(http: TestClient) -> None:
    now = http.get("/experts").json()
    assert (now["layers"], now["gpu_service"], now["cpu_expert_service"]) == ([], None, None)
