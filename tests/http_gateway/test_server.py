"""The process: its start, its end, and that it needs neither torch nor a proxy."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from http_gateway.server import bound
from tests.support.certificates import Authority
from tests.support.fake_server import FakeServer, chunk, complete
from tests.support.http_gateways import CHAT, HELLO, events
from tests.support.ports import free_port

WAIT_SECONDS = 60.0
Launch = Callable[..., "subprocess.Popen[bytes]"]
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture
def launch(server: FakeServer, tmp_path: Path) -> Iterator[Launch]:
    started: list[subprocess.Popen[bytes]] = []

    def start(port: int, *arguments: str, **environment: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "http_gateway", "--target", server.target, "--listen", f"127.0.0.1:{port}"]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen([*command, *arguments], stderr=log, env={**os.environ, **environment})
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def _wait_until_it_answers(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        assert process.poll() is None
        assert time.monotonic() < deadline
        try:
            _OPENER.open(f"http://127.0.0.1:{port}/metrics", timeout=5).close()
            return
        except OSError:
            time.sleep(0.05)


def _post(port: int, body: dict[str, Any]) -> str:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{CHAT}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with _OPENER.open(request, timeout=WAIT_SECONDS) as answer:
        return str(answer.read().decode())


def test_a_stream_finishes_after_sigterm_and_the_status_is_0(server: FakeServer, launch: Launch) -> None:
    """With proxies in the environment, which the gateway must not ask."""
    begun, may_end = threading.Event(), threading.Event()

    def script(request: object, context: object) -> Iterator[object]:
        yield chunk("Once", 1)
        begun.set()
        may_end.wait(WAIT_SECONDS)
        yield chunk(" upon", 2)
        yield complete(2)

    server.service.script = script  # type: ignore[assignment]
    port = free_port()
    process = launch(port, "--grace-seconds", "30", http_proxy="http://127.0.0.1:1", grpc_proxy="http://127.0.0.1:1")
    _wait_until_it_answers(process, port)
    texts: list[str] = []
    caller = threading.Thread(target=lambda: texts.append(_post(port, {"messages": HELLO, "stream": True})))
    caller.start()
    assert begun.wait(WAIT_SECONDS)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    may_end.set()
    caller.join(WAIT_SECONDS)
    *chunks, done = events(texts[0])
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in chunks) == "Once upon"
    assert done == "[DONE]"
    assert process.wait(WAIT_SECONDS) == 0


def test_keys_are_read_again_at_sighup(launch: Launch, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("old\n")
    port = free_port()
    process = launch(port, "--tokens-file", str(keys))
    _wait_until_it_answers(process, port)

    def status(key: str) -> int:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/models", headers={"authorization": f"Bearer {key}"}
        )
        try:
            with _OPENER.open(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert (status("old"), status("new")) == (200, 401)
    keys.write_text("new\n")
    process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + WAIT_SECONDS
    while status("new") != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert status("old") == 401


def test_a_renewed_certificate_is_presented_without_a_restart(launch: Launch, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    identity = authority.identity("server", "127.0.0.1")
    port = free_port()
    process = launch(port, "--tls-cert", str(identity.certificate), "--tls-key", str(identity.key))
    context = ssl.create_default_context(cafile=authority.certificate)
    deadline = time.monotonic() + WAIT_SECONDS

    def serial_number() -> object:
        """Of a certificate that the gateway presents; None while it does not answer."""
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
        try:
            with (
                socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
            ):
                return (connection.getpeercert() or {})["serialNumber"]
        except OSError:
            return None

    while (before := serial_number()) is None:
        pass
    authority.identity("server", "127.0.0.1")
    while serial_number() in (before, None):
        pass


@pytest.mark.parametrize(
    ("arguments", "status", "problem"),
    [
        (["--listen", "unix:/tmp/a"], 2, "--listen: 'unix:/tmp/a' is a socket; expected HOST:PORT"),
        (["--target", "nowhere"], 2, "--target: 'nowhere' is not an address"),
        (["--listen", "203.0.113.7:80"], 1, "--listen: cannot serve on 203.0.113.7:80: Cannot assign requested"),
        (["--tls-cert", "/nowhere"], 1, "--tls-key: must be given with --tls-cert"),
        (["--tls-cert", "/nowhere", "--tls-key", "/nowhere"], 1, "--tls-cert: cannot read /nowhere"),
        (["--tokens-file", "/nowhere"], 1, "--tokens-file: cannot read /nowhere"),
    ],
)
def test_a_start_that_fails_is_told_in_one_line(
    arguments: list[str], status: int, problem: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from http_gateway import __main__

    monkeypatch.setattr(sys, "argv", ["http_gateway", *arguments])
    try:
        found = __main__.main()
    except SystemExit as error:
        found = int(error.code or 0)
    printed = capfd.readouterr().err
    assert (found, printed.count("\n")) == (status, 1)
    assert printed.startswith(f"http_gateway: {problem}")


def test_what_is_written_is_sent_at_once() -> None:
    """Otherwise each event of a stream waits until the one before is acknowledged."""
    found: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def call() -> None:
        with bound("127.0.0.1:0") as listener:
            async with await asyncio.start_server(answer, sock=listener):
                reader, writer = await asyncio.open_connection(*listener.getsockname())
                await reader.read()
                writer.close()

    asyncio.run(call())
    assert found == [1]


def test_torch_is_not_imported() -> None:
    code = "import sys, http_gateway.server; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=WAIT_SECONDS).returncode == 0
