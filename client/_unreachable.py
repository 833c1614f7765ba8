"""Says in words why no connection came about, and what helps. gRPC reports the reason in its own terms only."""

import contextlib
import socket
from dataclasses import dataclass
from typing import Final

from client._errors import UnavailableError

_START: Final = "start one (`fiddler serve MODEL`), or wait until it listens"
_NOT_CONNECTED: Final = ("failed to connect", "errors resolving", "dns resolution", "name resolution")
"""What gRPC's texts begin with if there is no connection. Other texts are the server's own, or of a call that began."""
_PROBE_SECONDS: Final = 0.5
_LOST: Final = ("socket closed", "connection reset", "broken pipe", "goaway")


@dataclass(frozen=True, slots=True)
class Peer:
    """What is called.

    Attributes:
        target: HOST:PORT or unix:PATH.
        is_encrypted: Whether the client uses TLS.
    """

    target: str
    is_encrypted: bool

    def explained(self, error: UnavailableError) -> UnavailableError:
        """The error with a text that says why there is no connection, if gRPC's says so in its own terms."""
        raw = error.message.lower()
        if raw.startswith(_NOT_CONNECTED):
            text = self._reason(raw) or f"no connection to {self.target}: {error.message}"
        elif raw.startswith(_LOST):
            text = f"the connection to {self.target} was lost: the server ended, or the network failed"
        else:
            return error
        return UnavailableError(text, error.code)

    def _reason(self, raw: str) -> str | None:
        if "connection refused" in raw and self._listens():
            raw = "socket closed"  # a name such as localhost has two addresses, and gRPC reports one of them
        for marks, sentence in _REASONS_WITH_TLS if self.is_encrypted else _REASONS_WITHOUT_TLS:
            if any(mark in raw for mark in marks):
                return sentence.format(target=self.target)
        return None

    def _listens(self) -> bool:
        """Whether anything accepts connections at the target's name. An IP address has been tried by gRPC."""
        host, _, port = self.target.rpartition(":")
        if host.startswith(("[", "unix:")) or host.replace(".", "").isdigit():
            return False
        with contextlib.suppress(OSError, ValueError), socket.create_connection((host, int(port)), _PROBE_SECONDS):
            return True
        return False


_Reasons = tuple[tuple[tuple[str, ...], str], ...]

_REASONS: Final[_Reasons] = (
    (("connection refused",), f"nothing serves on {{target}}; {_START}"),
    (("no such file or directory",), f"there is no socket {{target}}; {_START}"),
    (("permission denied",), "{target} may not be opened by this user"),
    (
        ("errors resolving", "dns resolution", "name resolution", "domain name not found"),
        "{target}: no host has this name",
    ),
    (("network is unreachable", "no route to host"), "{target} cannot be reached from here; is the address right?"),
    (("timed out", "timeout"), "{target} does not answer; is the address right, and the port open?"),
)
_REASONS_WITHOUT_TLS: Final[_Reasons] = (
    *_REASONS,
    (
        ("failed parsing http/2", "settings frame"),
        "{target} is an HTTP server and does not speak gRPC; /metrics is on 9100 and 9101, the HTTP gateway on 8000, "
        "and gRPC on 50051 unless --listen says otherwise",
    ),
    (
        ("socket closed", "connection reset"),
        "the server at {target} closed the connection at once: it asks for TLS if it was started with --tls-cert; give "
        "its certificate authority with --tls-ca (tls_ca in Python)",
    ),
)
_REASONS_WITH_TLS: Final[_Reasons] = (
    *_REASONS,
    (
        ("wrong_version_number", "wrong version number", "http_request"),
        "the server at {target} does not use TLS; leave out --tls and --tls-ca, or use another port",
    ),
    (
        ("certificate_verify_failed",),
        "the certificate of {target} is of an authority that is not trusted; give the authority, or a self-signed "
        "certificate itself, with --tls-ca (tls_ca in Python)",
    ),
    (
        ("hostname verification", "peer name"),
        "the certificate of {target} is for another name; call it by that name, or give the name with "
        "--tls-server-name (tls_server_name in Python)",
    ),
    (
        ("socket closed", "connection reset", "certificate_required"),
        "the server at {target} closed the connection during the TLS handshake; it may not use TLS, or it was started "
        "with --tls-client-ca: then give a certificate of your own with --tls-cert and --tls-key",
    ),
)
