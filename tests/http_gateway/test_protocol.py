"""What a connection may hold before it has asked for anything, and requests that are no HTTP."""

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from uvicorn import Config

from http_gateway.protocol import MAX_HEAD_BYTES
from tests.support.fake_server import FakeServer
from tests.support.http_gateways import listening

WAIT_SECONDS = 20.0
POST = b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def address(_fake: FakeServer) -> Iterator[tuple[str, int]]:
    with listening(_fake.target) as url:
        yield "127.0.0.1", int(url.rpartition(":")[2])


def _answer(address: tuple[str, int], *pieces: bytes) -> tuple[bytes, bytes]:
    """The head and the body of what is answered until the connection is closed."""
    received = b""
    with socket.create_connection(address, timeout=WAIT_SECONDS) as caller:

        def send() -> None:
            try:
                for piece in pieces:
                    caller.sendall(piece)
            except OSError:  # refused meanwhile
                pass

        sending = threading.Thread(target=send)
        sending.start()
        try:
            while data := caller.recv(65536):
                received += data
        except ConnectionResetError:
            pass
        sending.join()
    head, _, body = received.partition(b"\r\n\r\n")
    return head, body


ENDLESS = {
    "a header": [b"GET /health HTTP/1.1\r\na: ", *[b"x" * 16384] * 64],
    "headers": [b"GET /health HTTP/1.1\r\n", *[b"a: b\r\n" * 2048] * 64],
    "the path": [b"GET /", *[b"x" * 16384] * 64],
    "what follows a body": [
        *[POST + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n{\r\n0\r\n", *[b"a: b\r\n" * 2048] * 64]
    ],
}


@pytest.mark.parametrize("pieces", ENDLESS.values(), ids=ENDLESS)
def test_what_has_no_end_before_or_after_a_body_is_refused(address: tuple[str, int], pieces: list[bytes]) -> None:
    head, body = _answer(address, *pieces)
    if b"chunked" in pieces[0]:
        assert head == b""  # the endpoint still waits for the body
        return
    assert head.startswith(b"HTTP/1.1 431 ")
    error = json.loads(body)["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "headers_too_large")
    assert str(MAX_HEAD_BYTES) in error["message"]


def test_headers_within_the_bound_are_taken_in_any_pieces(address: tuple[str, int]) -> None:
    padding = b"a: " + b"x" * (MAX_HEAD_BYTES // 2) + b"\r\n"
    request = b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n" + padding + b"\r\n"
    head, body = _answer(address, *[request[start : start + 999] for start in range(0, len(request), 999)])
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body)["object"] == "list"


def test_a_large_body_in_small_chunks_is_no_head(address: tuple[str, int]) -> None:
    content = json.dumps({"prompt": "a" * 2 * MAX_HEAD_BYTES, "max_tokens": 1}).encode()
    chunks = [
        b"400\r\n" + content[start : start + 1024] + b"\r\n" for start in range(0, len(content) // 1024 * 1024, 1024)
    ]
    rest = content[len(chunks) * 1024 :]
    head, _ = _answer(
        address,
        POST + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n",
        *chunks,
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(rest), rest),
    )
    assert head.startswith(b"HTTP/1.1 200 ")


def test_what_is_no_http_gets_an_error_of_the_usual_form(address: tuple[str, int]) -> None:
    head, body = _answer(address, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 as TLS begins\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["message"] == "the request is not valid HTTP"


@pytest.mark.parametrize("begun", [b"", b"GET /health HTTP/1.1\r\na: "], ids=["nothing", "a part of a head"])
def test_a_connection_that_asks_for_nothing_is_closed(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    init: Any = Config.__init__
    monkeypatch.setattr(Config, "__init__", lambda *args, **more: init(*args, **more | {"timeout_keep_alive": 0.1}))
    with listening(server.target) as url:
        assert _answer(("127.0.0.1", int(url.rpartition(":")[2])), begun) == (b"", b"")
