"""Serves one WSGI application over HTTP to few callers at a time, none of which can hold it up. /metrics is one.

The server of prometheus_client has a thread for every connection, and waits for its request without end.
"""

import contextlib
import socket
import ssl
import threading
import time
from socketserver import TCPServer, ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import WSGIApplication

from typing_extensions import override

MOST_CONNECTIONS = 16
SECONDS = 10.0
"""How long a connection may last. Prometheus' own limit for a scrape is the same."""
_SILENT_SECONDS = 0.25
"""How long a connection may be without its request before another one may take its place."""

Address = tuple[str, int]


class _Handler(WSGIRequestHandler):
    timeout = SECONDS  # of one read or write
    server: "Server"

    @override
    def setup(self) -> None:
        if isinstance(self.request, ssl.SSLSocket):
            self.request.settimeout(self.timeout)
            self.request.do_handshake()  # in this connection's thread, not in the one that accepts
        super().setup()

    @override
    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing: a scrape comes every few seconds."""

    @override
    def parse_request(self) -> bool:
        parsed = super().parse_request()
        self.server.heard(self.connection)
        return parsed


class Server(ThreadingMixIn, WSGIServer):
    """An HTTP server with a bound on connections and on their time."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, host: str, port: int, application: WSGIApplication, context: ssl.SSLContext | None = None
    ) -> None:
        """Binds the address. Nothing is served yet.

        Args:
            host: The host to bind.
            port: Its port.
            application: What is served.
            context: Of TLS; None serves without.

        Raises:
            OSError: It cannot be bound.
        """
        self._context = context
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}  # when each connection was made, in the time of time.monotonic()
        self._silent: set[socket.socket] = set()
        self.address_family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        super().__init__((str(address[0]), port), _Handler)
        self.set_app(application)

    def start(self) -> None:
        """Serves from a daemon thread."""
        threading.Thread(target=self.serve_forever, name="http", daemon=True).start()

    def heard(self, connection: socket.socket) -> None:
        """Notes that a connection's request has come."""
        with self._lock:
            self._silent.discard(connection)

    @override
    def server_bind(self) -> None:
        # the parent's looks the host's name up, which may take long
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    @override
    def get_request(self) -> tuple[socket.socket, Address]:
        connection, address = super().get_request()
        if self._context is not None:
            connection = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    @override
    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: Address) -> None:
        assert isinstance(request, socket.socket)
        with self._lock:
            has_room = len(self._open) < MOST_CONNECTIONS or self._end_silent_connection()
            if has_room:
                self._open[request] = time.monotonic()
                self._silent.add(request)
        if has_room:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    @override
    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        assert isinstance(request, socket.socket)
        with self._lock:
            self._forget(request)
        super().shutdown_request(request)

    @override
    def service_actions(self) -> None:
        """Ends connections whose time has run out. The server's thread calls this twice a second."""
        now = time.monotonic()
        with self._lock:
            for connection in [each for each, began in self._open.items() if now - began > SECONDS]:
                self._end(connection)

    @override
    def handle_error(self, request: object, client_address: Address) -> None:
        """A caller that left, or was ended, is no error."""

    def _end_silent_connection(self) -> bool:
        """Ends the one that has been without a request longest. Returns whether there was one."""
        oldest = min(self._silent, key=self._open.__getitem__, default=None)
        if oldest is None or time.monotonic() - self._open[oldest] < _SILENT_SECONDS:
            return False
        self._end(oldest)
        return True

    def _end(self, connection: socket.socket) -> None:
        """Its thread's next read or write fails, which ends the thread."""
        self._forget(connection)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def _forget(self, connection: socket.socket) -> None:
        self._open.pop(connection, None)
        self._silent.discard(connection)
