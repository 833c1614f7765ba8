"""What a connection needs: a checked address, TLS, gRPC's channel options, a token and a timeout."""

import re
from numbers import Real
from os import fspath
from pathlib import Path

import grpc

from client._options import TlsOptions
from client._statuses import invalid
from fiddler import rpc
from fiddler.access import tls

DEFAULT_MAX_MESSAGE_BYTES = 64 * 2**20
DEFAULT_KEEPALIVE_SECONDS = 330.0
MAX_TIMEOUT_SECONDS = 1e9
"""About 30 years. gRPC treats a deadline that is centuries away as one that has passed."""

_TOKEN = re.compile(r"[\x21-\x7e]+")


def checked_target(target: str) -> str:
    """Returns an address after checking it.

    Raises:
        InvalidRequestError: It is neither HOST:PORT nor unix:PATH.
    """
    try:
        return rpc.check_address(target)
    except (TypeError, ValueError, AttributeError) as error:
        raise invalid("target", str(error)) from error


def checked_timeout(timeout: float | None) -> float | None:
    """Returns a timeout, in seconds, as gRPC accepts it.

    Raises:
        InvalidRequestError: It is not a number above 0.
    """
    if timeout is None:
        return None
    if not isinstance(timeout, Real) or not timeout > 0:
        raise invalid("timeout", f"must be a number of seconds above 0, got {timeout!r}")
    return min(float(timeout), MAX_TIMEOUT_SECONDS)


def channel_options(
    target: str, *, max_message_bytes: int, keepalive_seconds: float, tls_server_name: str | None
) -> list[tuple[str, int | str]]:
    """The gRPC options of a channel to a target.

    A connection is silent during a long prefill. Pings detect a host that is gone and keep routers from dropping the
    connection. A server with gRPC's defaults accepts a ping every 5 minutes and closes the connection on more.
    """
    options: list[tuple[str, int | str]] = [
        *rpc.channel_options(target, max_message_bytes),
        ("grpc.keepalive_time_ms", round(keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_pings_without_data", 0),  # no limit; gRPC's default stops after two pings
        # gRPC's default of one second is longer than all retries together, so they would find no new connection.
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]
    if tls_server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls_server_name))
    return options


def credentials(target: str, options: TlsOptions) -> grpc.ChannelCredentials | None:
    """The TLS credentials of a channel; None if no option asks for TLS.

    Raises:
        InvalidRequestError: A file is missing or wrong, or the options contradict each other.
    """
    if not any(options.values()):
        return None
    if target.startswith("unix:"):
        raise invalid("tls", "is not available on a Unix socket")
    certificate, key = options.get("tls_cert"), options.get("tls_key")
    if (certificate is None) is not (key is None):
        missing, given = ("tls_key", "tls_cert") if key is None else ("tls_cert", "tls_key")
        raise invalid(missing, f"must be given with {given}")
    authorities = options.get("tls_ca")
    try:
        trusted = None if authorities is None else tls.read_authorities("tls_ca", Path(fspath(authorities)))
        if certificate is None or key is None:
            return grpc.ssl_channel_credentials(trusted)
        chain, private_key = tls.read_identity(("tls_cert", Path(fspath(certificate))), ("tls_key", Path(fspath(key))))
    except tls.TlsFileError as error:
        field, _, problem = str(error).partition(": ")
        raise invalid(field, problem) from error
    return grpc.ssl_channel_credentials(trusted, private_key, chain)


def token_metadata(target: str, token: str | None, *, is_encrypted: bool) -> tuple[tuple[str, str], ...]:
    """The metadata that carries a token; empty without one.

    Raises:
        InvalidRequestError: The token is malformed, or the connection could be read by others. The message does not
            contain the token.
    """
    if token is None:
        return ()
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise invalid("token", "must be visible ASCII characters without spaces")
    if not is_encrypted and not rpc.is_local(target):
        raise invalid("token", f"is not sent to {target} unencrypted; use TLS, e.g. tls_ca")
    return (("authorization", f"Bearer {token}"),)
