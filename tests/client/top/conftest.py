import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Page:
    """What a server answers with: each body once, in turn, and the last one from then on."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.status = 200
        self.bodies: list[bytes] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def next(self) -> bytes:
        return self.bodies.pop(0) if len(self.bodies) > 1 else self.bodies[0]


@contextmanager
def _serving() -> Iterator[Page]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(served.status)
            self.end_headers()
            self.wfile.write(served.next())

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served = Page(server.server_port)
        # otherwise it looks only twice a second whether it shall end
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield served
        server.shutdown()


@pytest.fixture
def page() -> Iterator[Page]:
    with _serving() as one:
        yield one


@pytest.fixture
def pages() -> Iterator[tuple[Page, Page]]:
    """The GPU service's and the CPU expert service's."""
    with ExitStack() as stack:
        yield stack.enter_context(_serving()), stack.enter_context(_serving())
