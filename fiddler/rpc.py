"""What both services share of gRPC: addresses, options, health, and errors as statuses with google.rpc details."""

from typing import Any, NoReturn

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fiddler.transport.addresses import check_address, is_local, is_this_host, target

__all__ = [
    "StatusError",
    "busy",
    "channel_options",
    "check_address",
    "failed_precondition",
    "invalid_argument",
    "is_local",
    "is_serving",
    "keepalive_options",
    "message_size_options",
    "public_options",
    "server_options",
    "target",
]

_STATUS_DETAILS_KEY = "grpc-status-details-bin"
_MOST_WAITING = 4000
_NONE_BEYOND = 8000


class StatusError(Exception):
    """Ends a call with a status. Code that checks a message raises it; the handler turns it into the status."""

    def __init__(self, code: grpc.StatusCode, message: str, *details: Message) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details

    @property
    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        """The google.rpc.Status, in the key that gRPC's convention gives it."""
        if not self.details:
            return ()
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in self.details:
            status.details.add().Pack(detail)
        return ((_STATUS_DETAILS_KEY, status.SerializeToString()),)

    def abort(self, context: grpc.ServicerContext) -> NoReturn:
        """Ends a synchronous handler's call with this status."""
        context.set_trailing_metadata(self.trailing_metadata)
        context.abort(self.code, self.message)

    async def abort_async(self, context: "grpc.aio.ServicerContext[Any, Any]") -> NoReturn:
        """Ends an asynchronous handler's call with this status.

        gRPC keeps the exception that this raises as long as the call's context, and the exception keeps the frames that
        it passes. So each of those must give up the context and the request, or they live until Python's collector
        finds the cycle, which is rare in a process with many objects.
        """
        abort = context.abort(self.code, self.message, self.trailing_metadata)
        del context
        await abort


def invalid_argument(field: str, problem: str, reason: str = "") -> StatusError:
    """A field of the request is wrong.

    Args:
        field: The field's path in the request, by its proto names, e.g. "sampling.top_p".
        problem: What is wrong with it, e.g. "must be above 0 and at most 1, got 7".
        reason: A name by which programs know the problem, e.g. "CONTEXT_LENGTH_EXCEEDED"; empty if it has none.
    """
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=problem, reason=reason)
    return StatusError(
        grpc.StatusCode.INVALID_ARGUMENT,
        f"{field}: {problem}",
        error_details_pb2.BadRequest(field_violations=[violation]),
    )


def failed_precondition(subject: str, problem: str) -> StatusError:
    """Caller and service do not fit together.

    Args:
        subject: What differs, e.g. "checkpoint_fingerprint".
        problem: A sentence with both values.
    """
    violation = error_details_pb2.PreconditionFailure.Violation(type="MISMATCH", subject=subject, description=problem)
    return StatusError(
        grpc.StatusCode.FAILED_PRECONDITION,
        problem,
        error_details_pb2.PreconditionFailure(violations=[violation]),
    )


def busy(message: str, retry_seconds: float) -> StatusError:
    """The service has no room for the call now.

    Args:
        message: What there is too much of.
        retry_seconds: How long the caller should wait before it retries.
    """
    delay = duration_pb2.Duration()
    delay.FromNanoseconds(round(retry_seconds * 1e9))
    return StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, message, error_details_pb2.RetryInfo(retry_delay=delay))


def is_serving(channel: grpc.Channel, timeout_seconds: float) -> bool:
    """Whether a channel's server reports SERVING over grpc.health.v1."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    try:
        response = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
    except grpc.RpcError:
        return False
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


def channel_options(address: str, max_message_bytes: int) -> list[tuple[str, int]]:
    """Options of every channel."""
    options = message_size_options(max_message_bytes)
    if is_this_host(address):
        options.append(("grpc.enable_http_proxy", 0))  # a proxy would look for the address on its own host
    return options


def message_size_options(max_message_bytes: int, max_sent_bytes: int | None = None) -> list[tuple[str, int]]:
    """Channel or server options that bound messages: received ones, and sent ones, which may be larger.

    gRPC's own default is 4 MiB.
    """
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes if max_sent_bytes is None else max_sent_bytes),
    ]


def server_options(max_message_bytes: int, max_sent_bytes: int | None = None) -> list[tuple[str, int]]:
    """Options of both services' servers; see message_size_options."""
    return [
        *message_size_options(max_message_bytes, max_sent_bytes),
        # otherwise two servers may listen on one port, and each gets some of the calls
        ("grpc.so_reuseport", 0),
        # gRPC cancels calls that come faster than they are begun, some beyond the first number and all beyond the
        # second: 1000 and 3000 by default. A caller cannot tell that from its own cancelling, so a burst is let in,
        # and what is too much is refused with a status that says so.
        ("grpc.server.max_pending_requests", _MOST_WAITING),
        ("grpc.server.max_pending_requests_hard_limit", _NONE_BEYOND),
    ]


def public_options() -> list[tuple[str, int]]:
    """Options of a server for callers who may send too much, or disappear; see keepalive_options.

    gRPC refuses a message that is over the limit by its first bytes. How much of it arrives meanwhile is up to HTTP/2's
    window, which is 64 KiB unless gRPC measures the connection's delay: then it grows to megabytes, for each caller.
    """
    return [("grpc.http2.bdp_probe", 0), *keepalive_options()]


def keepalive_options() -> list[tuple[str, int]]:
    """Options of a server with callers on a network, which may disappear without closing their connections.

    The server pings a connection that was silent for a minute: a caller that is gone frees what it held, and routers do
    not forget the connection. Callers may ping too, idle or not, every 10 seconds. No connection is closed for being
    idle.
    """
    return [
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ]
