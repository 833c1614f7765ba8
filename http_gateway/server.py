"""The process: binds its address, serves, and lets streams finish at the end."""

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Iterator

import structlog
import uvicorn
from typing_extensions import override

from fiddler.access.certificates import Certificates, given
from fiddler.errors import UserError
from fiddler.metrics import set_build_info
from fiddler.transport import ports
from http_gateway.app import create_app
from http_gateway.gateway import Gateway
from http_gateway.protocol import Protocol
from http_gateway.settings import Settings

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 120
"""Longer than proxies and clients keep unused connections (60 and 90 s are usual). Whoever closes first must not be the
gateway: a request that is on its way then is lost."""
_LOOK_SECONDS = 2.0
_log = structlog.get_logger("http_gateway")


class Server(uvicorn.Server):
    """Ends with status 0 after SIGTERM or SIGINT, reads the keys again at SIGHUP, and certificates when they change."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, certificates: Certificates | None) -> None:
        """Prepares."""
        super().__init__(config)
        self._gateway = gateway
        self._certificates = certificates
        self._looked_at = time.monotonic()
        config.load()
        if certificates is not None:
            certificates.on_change(self._use_certificates)

    @override
    async def on_tick(self, counter: int) -> bool:
        """Uvicorn calls this ten times a second."""
        if self._certificates is not None and time.monotonic() - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = time.monotonic()
            self._certificates.look()
        return await super().on_tick(counter)

    def _use_certificates(self) -> None:
        """New connections get them; open ones keep theirs."""
        config = self.config
        assert config.ssl is not None
        assert config.ssl_certfile is not None
        config.ssl.load_cert_chain(config.ssl_certfile, config.ssl_keyfile)

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn would raise the signal again at the end."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)
        # between two of the loop's callbacks, since a handler that logs may have interrupted what holds the log's lock
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._gateway.tokens.reload)
        yield


def run(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        UserError: It cannot start with these settings.
    """
    gateway = Gateway(settings)
    certificates = given(("--tls-cert", settings.tls_cert), ("--tls-key", settings.tls_key))
    with bound(settings.listen) as listener:
        set_build_info("http_gateway")
        for warning in gateway.warnings():
            _log.warning("risk", what=warning)
        config = uvicorn.Config(
            create_app(gateway),
            log_config=None,
            access_log=False,
            loop="asyncio",  # the same whatever else is installed
            http=Protocol,
            ws="none",  # whatever else is installed
            server_header=False,
            date_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(settings.grace_seconds)),
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
        )
        server = Server(config, gateway, certificates)
        scheme = "https" if settings.tls_cert else "http"
        _log.info("serving", url=f"{scheme}://{settings.listen}", target=settings.target)
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # its steps are logged here already
        server.run(sockets=[listener])
    _log.info("stopped")


def bound(address: str) -> socket.socket:
    """A socket that is bound to HOST:PORT.

    Raises:
        UserError: The address is taken, or is none of this host's.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        family, _, _, _, where = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        # TCP by name: only then does asyncio set TCP_NODELAY. Without it every event of a stream waits until the
        # caller's system has acknowledged the one before, up to 40 ms on a connection that is used again.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(where)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise UserError(f"--listen: {ports.refusal(address, error.strerror or str(error))}") from None
    return listener
