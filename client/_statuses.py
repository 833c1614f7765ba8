"""Converts gRPC's statuses to the client's errors."""

from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from client._errors import (
    BusyError,
    ClientError,
    DeadlineError,
    GenerationCancelledError,
    InvalidRequestError,
    ServerError,
    UnauthenticatedError,
    UnavailableError,
)

_ERRORS: dict[grpc.StatusCode, type[ClientError]] = {
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.CANCELLED: GenerationCancelledError,
}
_Detail = TypeVar("_Detail", bound=Message)
_TOO_LARGE = "received message larger than max"


def error_from(rpc_error: grpc.RpcError) -> ClientError:
    """Converts an error of gRPC."""
    if not isinstance(rpc_error, grpc.Call | grpc.aio.AioRpcError):
        return ServerError(str(rpc_error), grpc.StatusCode.UNKNOWN)
    code = rpc_error.code()
    message = rpc_error.details() or code.name
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidRequestError(message, code, *_violation(rpc_error))
    # gRPC reports a message over the server's limit with the status of a busy server, but waiting does not help.
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in message.lower():
        return InvalidRequestError(message, code)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return BusyError(message, code, _retry_after_seconds(rpc_error))
    if code is grpc.StatusCode.UNIMPLEMENTED:
        message = f"the server is no GPU service, or an older one: {message}"
    return _ERRORS.get(code, ServerError)(message, code)


def invalid(field: str, problem: str) -> InvalidRequestError:
    """The error for a request that the client refuses before sending it."""
    return InvalidRequestError(f"{field}: {problem}", grpc.StatusCode.INVALID_ARGUMENT, field)


def cancelled() -> GenerationCancelledError:
    """The error for a generation that this client cancelled."""
    return GenerationCancelledError("the generation was cancelled", grpc.StatusCode.CANCELLED)


def cut_short() -> ServerError:
    """The error for a stream that ended with status OK but without completing every generation."""
    return ServerError("the stream ended before the generation was complete", grpc.StatusCode.DATA_LOSS)


def _violation(rpc_error: grpc.Call | grpc.aio.AioRpcError) -> tuple[str | None, str]:
    """The field that is wrong, if the server names one, and the name of what is wrong with it."""
    bad_request = _detail(rpc_error, error_details_pb2.BadRequest())
    if bad_request is None or not bad_request.field_violations:
        return None, ""
    violation = bad_request.field_violations[0]
    return str(violation.field), str(violation.reason)


def _retry_after_seconds(rpc_error: grpc.Call | grpc.aio.AioRpcError) -> float | None:
    retry_info = _detail(rpc_error, error_details_pb2.RetryInfo())
    if retry_info is None:
        return None
    return float(max(0.0, retry_info.retry_delay.ToTimedelta().total_seconds()))


def _detail(rpc_error: grpc.Call | grpc.aio.AioRpcError, kind: _Detail) -> _Detail | None:
    """Fills in the detail of that kind from the server's status; None if the status has none."""
    try:
        status = rpc_status.from_call(rpc_error)  # type: ignore[arg-type]  # an AioRpcError has the methods that it calls
    except (ValueError, DecodeError):  # The details contradict the status or cannot be parsed. The message remains.
        return None
    return next((kind for detail in (status.details if status else ()) if detail.Unpack(kind)), None)
