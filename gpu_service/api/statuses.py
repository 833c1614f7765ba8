"""Which status a call ends with, for each way in which a request can fail."""

import grpc

from fiddler import rpc
from gpu_service.cpu_experts.client import ExpertServiceError
from gpu_service.errors import (
    DuplicateIdError,
    EngineStoppedError,
    NeverFitsError,
    NonFiniteError,
    QueueFullError,
    SlowReaderError,
)

RETRY_SECONDS = 1.0
"""When to ask again where too many wait: whenever any request ends there is room for one more."""


def status_of(error: Exception) -> rpc.StatusError:
    """The status that says what went wrong, and no more than the caller should know."""
    match error:
        case rpc.StatusError():
            return error
        case NeverFitsError():
            return rpc.invalid_argument(error.field, str(error))
        case DuplicateIdError():
            return rpc.StatusError(grpc.StatusCode.ALREADY_EXISTS, f"request_id: {error}")
        case QueueFullError():
            return rpc.busy(str(error), RETRY_SECONDS)
        case SlowReaderError():
            return rpc.StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        case ExpertServiceError() | EngineStoppedError():
            return rpc.StatusError(grpc.StatusCode.UNAVAILABLE, str(error))
        case NonFiniteError():
            return rpc.StatusError(grpc.StatusCode.INTERNAL, str(error))
    return rpc.StatusError(grpc.StatusCode.INTERNAL, "the computation failed; the service's log says why")
