"""Callers that leave end their generation, whatever it is doing."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx2
import pytest
from prometheus_client import REGISTRY

from http_gateway import responses
from pair import Pair
from tests.support.fake_server import FakeServer, chunk, complete, hang_after, taken
from tests.support.http_gateways import CHAT, COMPLETIONS, HELLO, listening

WAIT_SECONDS = 20.0


@pytest.fixture
def url(server: FakeServer) -> Iterator[str]:
    with listening(server.target) as url:
        yield url


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("begun", [False, True], ids=["before the first token", "after it"])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_caller_that_leaves_cancels_its_generation(
    server: FakeServer, url: str, path: str, begun: bool, stream: bool
) -> None:
    server.service.cancelled = threading.Event()
    script = hang_after(*([chunk("Once", 1)] if begun else []))
    server.service.script = taken(script)
    body = {"messages": HELLO, "prompt": "a", "stream": stream}
    with (
        pytest.raises(httpx2.TimeoutException),
        httpx2.stream("POST", f"{url}{path}", json=body, timeout=0.4) as answer,
    ):
        for _ in answer.iter_raw():
            pass
    assert server.service.cancelled.wait(WAIT_SECONDS)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_stream_is_not_silent_for_long(
    server: FakeServer, url: str, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Proxies and clients would take a long prompt for the end."""
    monkeypatch.setattr(responses, "SILENCE_SECONDS", 0.05)
    may_begin = threading.Event()

    def script(request: object, context: object) -> Iterator[object]:
        may_begin.wait(WAIT_SECONDS)
        yield chunk("Once", 1)
        yield complete(1)

    server.service.script = taken(script)  # type: ignore[arg-type]
    lines: list[str] = []
    body = {"messages": HELLO, "prompt": "a", "stream": True}
    with httpx2.stream("POST", f"{url}{path}", json=body, timeout=WAIT_SECONDS) as answer:
        for line in answer.iter_lines():
            lines.append(line)
            if lines.count(": working") == 2:
                may_begin.set()
    sent = [line for line in lines if line]
    assert sent.count(": working") >= 2
    assert {line.partition(":")[0] for line in sent if line != ": working"} == {"data"}
    assert ':"Once"' in "".join(sent[-3:])
    assert sent[-1] == "data: [DONE]"


def test_a_caller_that_leaves_cancels_all_its_prompts(server: FakeServer, url: str) -> None:
    cancelled = threading.Semaphore(0)

    def script(request: object, context: object) -> Iterator[object]:
        context.add_callback(cancelled.release)  # type: ignore[attr-defined]
        yield from hang_after(chunk("Once", 1))(request, context)  # type: ignore[arg-type]

    server.service.script = script  # type: ignore[assignment]
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(f"{url}{COMPLETIONS}", json={"prompt": ["a", "b", "c"]}, timeout=0.4)
    assert all(cancelled.acquire(timeout=WAIT_SECONDS) for _ in range(3))


def test_a_caller_that_leaves_within_its_body_is_counted_as_that(url: str) -> None:
    def count(code: str) -> float:
        labels = {"endpoint": COMPLETIONS, "http_status": code}
        return REGISTRY.get_sample_value("fiddler_http_requests_total", labels) or 0.0

    before, errors = count("499"), count("500")
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as caller:
        headers = b"host: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 1000"
        caller.sendall(b"POST /v1/completions HTTP/1.1\r\n" + headers + b"\r\n\r\n{")
    deadline = time.monotonic() + WAIT_SECONDS
    while count("499") == before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (count("499"), count("500")) == (before + 1, errors)


def test_callers_that_vanish_leave_every_slot_free(pair: Pair) -> None:
    """Some before their answer, some within it, without a word to the server."""
    from client import Client

    body = b'{"prompt": [5, 6, 7], "max_tokens": 400, "stream": true}'
    answered = set()
    headers = b"host: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d" % len(body)
    with listening(pair.target) as url, Client(pair.target) as client, ExitStack() as stack:
        address = "127.0.0.1", int(url.rpartition(":")[2])
        for number in range(200):
            caller = stack.enter_context(socket.create_connection(address))
            caller.sendall(b"POST /v1/completions HTTP/1.1\r\n" + headers + b"\r\n\r\n" + body)
            if number % 3 == 0:
                answered.add(caller.recv(100)[:12])
            caller.close()
        assert answered <= {b"HTTP/1.1 200", b"HTTP/1.1 429"}
        assert b"HTTP/1.1 200" in answered
        deadline = time.monotonic() + WAIT_SECONDS
        while (info := client.server_info()).used_slots or info.waiting_requests:
            assert time.monotonic() < deadline, info
            time.sleep(0.1)
        assert client.generate([5, 6], max_tokens=2, temperature=0).texts()
