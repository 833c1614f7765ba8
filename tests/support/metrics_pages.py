"""A web server whose page a test writes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from typing_extensions import override


class Page:
    """What the server answers.

    Attributes:
        port: The server's port of the loopback interface.
        status: The HTTP status.
        bodies: The bodies, each sent once and the last one from then on.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.status = 200
        self.bodies: list[bytes] = []

    @property
    def address(self) -> str:
        """HOST:PORT of the server."""
        return f"127.0.0.1:{self.port}"

    def next_body(self) -> bytes:
        """The body of the next answer."""
        return self.bodies.pop(0) if len(self.bodies) > 1 else self.bodies[0]


@contextmanager
def serving() -> Iterator[Page]:
    """Serves a page."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(page.status)
            self.end_headers()
            self.wfile.write(page.next_body())

        @override
        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        page = Page(server.server_port)
        # The default of 0.5 seconds between looks for a shutdown would slow the tests.
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield page
        server.shutdown()
