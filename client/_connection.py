"""What both clients and the health check ask of a connection: an address, TLS, gRPC's options, and a timeout."""

import re
from numbers import Real
from os import fspath
from pathlib import Path

import grpc

from client._options import TlsOptions
from client._statuses import invalid
from fiddler import rpc, tls

DEFAULT_MAX_MESSAGE_BYTES = 64 * 2**20
DEFAULT_KEEPALIVE_SECONDS = 330.0
MAX_TIMEOUT_SECONDS = 1e9
"""gRPC takes a deadline centuries ahead for one that has passed; three decades are as good as none."""

_TOKEN = re.compile(r"[\x21-\x7e]+")


def checked_target(target: str) -> str:
    """The address, once it is known to be one.

    Raises:
        InvalidRequestError: It is neither HOST:PORT nor unix:PATH.
    """
    try:
        return rpc.check_address(target)
    except (TypeError, ValueError, AttributeError) as error:
        raise invalid("target", str(error)) from error


def checked_timeout(timeout: float | None) -> float | None:
    """The timeout, as gRPC takes it.

    Raises:
        InvalidRequestError: It is no number above 0.
    """
    if timeout is None:
        return None
    if not isinstance(timeout, Real) or not timeout > 0:
        raise invalid("timeout", f"must be a number of seconds above 0, got {timeout!r}")
    return min(float(timeout), MAX_TIMEOUT_SECONDS)


def channel_options(
    target: str, max_message_bytes: int, keepalive_seconds: float, tls_server_name: str | None
) -> list[tuple[str, int | str]]:
    """The options of gRPC for a channel to that target.

    A long prefill is silence. Pings in it find a host that is gone, and keep routers on the way from forgetting the
    connection; a server that was told nothing else bears one in 5 minutes, and hangs up on more.
    """
    options: list[tuple[str, int | str]] = [
        *rpc.channel_options(target, max_message_bytes),
        ("grpc.keepalive_time_ms", round(keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_pings_without_data", 0),  # gRPC's default gives up pinging after two
        # gRPC's default of a second is longer than all retries take, which would then find no connection tried
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]
    if tls_server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls_server_name))
    return options


def credentials(target: str, options: TlsOptions) -> grpc.ChannelCredentials | None:
    """The client's side of TLS; None where no option asks for it.

    Raises:
        InvalidRequestError: A file is missing or wrong, or the options do not make sense together.
    """
    if not any(options.values()):
        return None
    if target.startswith("unix:"):
        raise invalid("tls", "a Unix socket has none")
    certificate, key = options.get("tls_cert"), options.get("tls_key")
    if (certificate is None) is not (key is None):
        missing, given = ("tls_key", "tls_cert") if key is None else ("tls_cert", "tls_key")
        raise invalid(missing, f"must be given with {given}")
    authorities = options.get("tls_ca")
    try:
        trusted = None if authorities is None else tls.read_authorities("tls_ca", Path(fspath(authorities)))
        if certificate is None or key is None:
            return grpc.ssl_channel_credentials(trusted)
        chain, secret = tls.read_identity(("tls_cert", Path(fspath(certificate))), ("tls_key", Path(fspath(key))))
    except tls.TlsFileError as error:
        field, _, problem = str(error).partition(": ")
        raise invalid(field, problem) from error
    return grpc.ssl_channel_credentials(trusted, secret, chain)


def token_metadata(target: str, token: str | None, is_encrypted: bool) -> tuple[tuple[str, str], ...]:
    """The metadata that carries a token.

    Raises:
        InvalidRequestError: It is no token, or others could read it on the way. The message does not show it.
    """
    if token is None:
        return ()
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise invalid("token", "must be visible ASCII characters without spaces")
    if not is_encrypted and not rpc.is_local(target):
        raise invalid("token", f"is not sent to {target} unencrypted; ask for TLS, e.g. by tls_ca")
    return (("authorization", f"Bearer {token}"),)
