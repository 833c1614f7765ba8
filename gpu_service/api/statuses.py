"""The gRPC status of each error that a call may end with."""

import grpc

from fiddler import rpc
from gpu_service.errors import CallError, DuplicateIdError, QueueFullError, RequestError


def status_of(error: CallError) -> rpc.StatusError:
    """The status, with google.rpc details if there is more to say than the text."""
    match error:
        case DuplicateIdError():
            return rpc.StatusError(grpc.StatusCode[error.code], f"{error.field}: {error}")
        case RequestError():
            return rpc.invalid_argument(error.field, str(error), error.reason)
        case QueueFullError():
            return rpc.busy(str(error), error.retry_seconds)
    return rpc.StatusError(grpc.StatusCode[error.code], str(error))
