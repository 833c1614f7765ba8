"""The process: binds its address, serves, and lets streams finish at the end."""

import contextlib
import logging
import signal
import socket
from collections.abc import Iterator

import structlog
import uvicorn
from typing_extensions import override

from fiddler.access import tls
from fiddler.errors import UserError
from fiddler.metrics import set_build_info
from fiddler.transport import ports
from http_gateway.app import create_app
from http_gateway.gateway import Gateway
from http_gateway.settings import Settings

_BACKLOG = 2048
_log = structlog.get_logger("http_gateway")


class Server(uvicorn.Server):
    """Ends with status 0 after SIGTERM or SIGINT, and reads the keys again at SIGHUP."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        """Prepares."""
        super().__init__(config)
        self._gateway = gateway

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn would raise the signal again at the end."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)
        signal.signal(signal.SIGHUP, lambda *_: self._gateway.tokens.reload())
        yield


def run(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        UserError: It cannot start with these settings.
    """
    gateway = Gateway(settings)
    _check_tls(settings)
    with _bound(settings.listen) as listener:
        set_build_info("http_gateway")
        for warning in gateway.warnings():
            _log.warning("risk", what=warning)
        config = uvicorn.Config(
            create_app(gateway),
            log_config=None,
            access_log=False,
            loop="asyncio",  # the same whatever else is installed
            http="httptools",
            server_header=False,
            date_header=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=max(1, round(settings.grace_seconds)),
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
        )
        scheme = "https" if settings.tls_cert else "http"
        _log.info("serving", url=f"{scheme}://{settings.listen}", target=settings.target)
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # its steps are logged here already
        Server(config, gateway).run(sockets=[listener])
    _log.info("stopped")


def _check_tls(settings: Settings) -> None:
    if settings.tls_cert is None and settings.tls_key is None:
        return
    if settings.tls_cert is None or settings.tls_key is None:
        missing, given = ("--tls-key", "--tls-cert") if settings.tls_key is None else ("--tls-cert", "--tls-key")
        raise UserError(f"{missing}: must be given with {given}")
    tls.read_identity(("--tls-cert", settings.tls_cert), ("--tls-key", settings.tls_key))


def _bound(address: str) -> socket.socket:
    """A socket that is bound to HOST:PORT.

    Raises:
        UserError: The address is taken, or is none of this host's.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        family, _, _, _, where = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(where)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise UserError(f"--listen: {ports.refusal(address, error.strerror or str(error))}") from None
    return listener
