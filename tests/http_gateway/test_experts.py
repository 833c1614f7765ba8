"""/experts: both services' metrics, read at most once a second, however many ask."""

import asyncio
from dataclasses import dataclass, field

import pytest

from client.metrics.scrape import Exposition, parse
from http_gateway.experts import ExpertsFeed

TEXT = """
fiddler_build_info{service="gpu_service"} 1
fiddler_expert_selections_by_expert_total{layer="0",expert="0"} %d
fiddler_expert_selections_by_expert_total{layer="0",expert="1"} 1
fiddler_expert_selections_total{layer="0",route="remote"} %d
"""


@dataclass
class _Source:
    """Metrics that grow with each reading."""

    url: str = "http://a/metrics"
    readings: list[float] = field(default_factory=list)

    def scrape(self, timeout_seconds: float) -> Exposition:
        self.readings.append(timeout_seconds)
        count = 10 * len(self.readings)
        return parse(TEXT % (count, count), float(len(self.readings)))


async def test_many_callers_read_once_and_see_what_grew(monkeypatch: pytest.MonkeyPatch) -> None:
    source = _Source()
    monkeypatch.setattr("http_gateway.experts.Endpoint", lambda *_: source)
    feed = ExpertsFeed("a:1", "none")
    first = await asyncio.gather(*(feed.latest() for _ in range(5)))
    assert len(source.readings) == 1
    assert first[0]["cpu_expert_service"] is None
    feed._read_at -= 10
    now = await feed.latest()
    (layer,) = now["layers"]
    assert (layer["selections"], layer["routes"]["remote"]) == ([10.0, 0.0], 10.0)
    assert now["routes"] == {"resident": 0.0, "streamed": 0.0, "remote": 1.0}
    feed.close()


async def test_a_service_that_does_not_answer_is_told() -> None:
    feed = ExpertsFeed("127.0.0.1:1", "127.0.0.1:1")
    now = await feed.latest()
    assert "connection refused" in now["gpu_service"]["error"]
    assert now["layers"] == []
    feed.close()
