"""What both clients and the health check ask of a connection: an address, gRPC's options, and a timeout."""

from numbers import Real

from client._statuses import invalid
from fiddler import rpc

MAX_TIMEOUT_SECONDS = 1e9
"""gRPC takes a deadline centuries ahead for one that has passed; three decades are as good as none."""


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


def channel_options(target: str, max_message_bytes: int, keepalive_seconds: float) -> list[tuple[str, int]]:
    """The options of gRPC for a channel to that target.

    A long prefill is silence. Pings in it find a host that is gone, and keep routers on the way from forgetting the
    connection; a server that was told nothing else bears one in 5 minutes, and hangs up on more.
    """
    return [
        *rpc.channel_options(target, max_message_bytes),
        ("grpc.keepalive_time_ms", round(keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_pings_without_data", 0),  # gRPC's default gives up pinging after two
    ]
