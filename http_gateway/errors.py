"""Errors in OpenAI's form, and which one each error of the client becomes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from fastapi.responses import JSONResponse

from client import (
    BusyError,
    ClientError,
    DeadlineError,
    GenerationCancelledError,
    InvalidRequestError,
    UnauthenticatedError,
    UnavailableError,
)

_RETRY_SECONDS = 1
_INVALID = "invalid_request_error"
_SERVER = "server_error"
_CODES = {
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    415: "unsupported_media_type",
    429: "rate_limit_exceeded",
    431: "headers_too_large",
    502: "bad_gateway",
    503: "service_unavailable",
    504: "timeout",
}

_CODES_OF_REASONS = {"CONTEXT_LENGTH_EXCEEDED": "context_length_exceeded"}
"""By these codes agents know that they must shorten their conversation."""


@dataclass(eq=False)  # not frozen: a context manager sets the traceback of an exception
class ApiError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: The HTTP status.
        message: What went wrong, in words. It begins with the field if there is one.
        param: The field of the request that is wrong, e.g. "messages[0].content".
        code: OpenAI's name for the error; None takes the one of the status.
        headers: Further headers of the answer.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] | None = None

    @property
    def content(self) -> dict[str, Any]:
        """The body in OpenAI's form."""
        kind = "rate_limit_error" if self.status == 429 else _INVALID if self.status < 500 else _SERVER
        code = self.code or _CODES.get(self.status)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": code}}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.content, self.status, dict(self.headers or {}))


def invalid(param: str, problem: str, code: str | None = None) -> ApiError:
    """The error for a field that is wrong."""
    return ApiError(400, f"{param}: {problem}", param, code)


def unauthorized(problem: str) -> ApiError:
    """The error for a request without a valid API key."""
    return ApiError(401, f"{problem}; send `Authorization: Bearer KEY`", headers={"WWW-Authenticate": "Bearer"})


def api_error(error: ClientError, param_of: Callable[[str], str] = str) -> ApiError:
    """Converts an error of the client.

    Args:
        error: How the call to the GPU service failed.
        param_of: The field of the HTTP request for a field of the GPU service's request.
    """
    match error:
        case InvalidRequestError(code=grpc.StatusCode.RESOURCE_EXHAUSTED):
            return ApiError(413, error.message)
        case InvalidRequestError(field=None):
            return ApiError(400, error.message)
        case InvalidRequestError(field=str(field)):
            param, code = param_of(field), _CODES_OF_REASONS.get(error.reason)
            return ApiError(400, f"{param}: {error.message.removeprefix(f'{field}: ')}", param, code)
        case UnauthenticatedError():
            return unauthorized("the GPU service requires an API key, and this request has none or an invalid one")
        case BusyError():
            seconds = math.ceil(error.retry_after_seconds or _RETRY_SECONDS)
            return ApiError(429, error.message, headers={"Retry-After": str(max(1, seconds))})
        case UnavailableError():
            problem = f"the GPU service is not available: {error.message}"
            return ApiError(503, problem, headers={"Retry-After": str(_RETRY_SECONDS)})
        case DeadlineError():
            return ApiError(504, "the request took longer than it may (--request-timeout-seconds)")
        case GenerationCancelledError():
            return ApiError(503, "the generation was cancelled", code="cancelled")
    if error.code is grpc.StatusCode.UNIMPLEMENTED:
        return ApiError(502, f"what answers at --target is not a GPU service: {error.message}")
    return ApiError(500, f"the GPU service failed: {error.message}")


def invalid_body(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    """The error for a body that does not have the form of its endpoint, from pydantic's first problem."""
    problem = problems[0]
    if problem["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {problem.get('ctx', {}).get('error', 'cannot be parsed')}")
    param = path_of(problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not param and problem["type"] == "value_error":  # of the whole body, which names the field itself
        param, _, message = message.partition(": ")
    if not param:
        return ApiError(400, f"the body must be a JSON object: {message}")
    return invalid(param, message[:1].lower() + message[1:])


def path_of(location: Sequence[int | str]) -> str:
    """A field's path as OpenAI writes it, e.g. messages[0].content.

    The parts that begin with "=" say which form of a union was meant; they are no fields.
    """
    path = ""
    for part in location[1:]:  # the first part is "body"
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith(("=", "[")):
            path += f".{part}" if path else part
    return path
