"""A stream that has never sent a message gives way when all places are taken; one that has keeps its place."""

import time

import grpc
import pytest
from structlog.testing import capture_logs

from cpu_expert_service import streams
from tests.support.in_process_service import MAX_STREAMS, Service, value, wait_until
from tests.support.streams import Stream, stream


@pytest.fixture
def opened(service: Service) -> list[Stream]:
    """All streams that may be open; the first two are in use, the others have been silent so far."""
    opened = [Stream(service.channel) for _ in range(MAX_STREAMS)]
    assert all(each.works() for each in opened[:2])
    wait_until(lambda: value("fiddler_expert_streams") == MAX_STREAMS)
    return opened


def test_a_silent_stream_gives_way(service: Service, opened: list[Stream], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "SILENT_SECONDS", 0.2)
    time.sleep(0.3)
    with capture_logs() as logs, stream(service.channel) as another:
        assert another.works()
        assert all(each.works() for each in opened[:2])
        assert opened[2].fails().code() is grpc.StatusCode.CANCELLED
        wait_until(lambda: value("fiddler_expert_streams") == MAX_STREAMS)
        # nobody is silent now
        assert Stream(service.channel).fails().code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert logs == []
    for each in opened:
        each.close()


def test_a_stream_that_was_opened_just_now_keeps_its_place(service: Service, opened: list[Stream]) -> None:
    assert Stream(service.channel).fails().code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert all(each.works() for each in opened)
    for each in opened:
        each.close()
