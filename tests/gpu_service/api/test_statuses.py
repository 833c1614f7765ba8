import grpc
import pytest

from gpu_service.api.statuses import status_of
from gpu_service.errors import (
    DuplicateIdError,
    EngineStoppedError,
    ExpertServiceError,
    NeverFitsError,
    NonFiniteError,
    QueueFullError,
    SlowReaderError,
    for_caller,
)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (NeverFitsError("max_tokens", "too many"), grpc.StatusCode.INVALID_ARGUMENT, "max_tokens: too many"),
        (DuplicateIdError("it is under way"), grpc.StatusCode.ALREADY_EXISTS, "request_id: it is under way"),
        (QueueFullError("9 wait"), grpc.StatusCode.RESOURCE_EXHAUSTED, "9 wait"),
        (SlowReaderError("9 were not read"), grpc.StatusCode.RESOURCE_EXHAUSTED, "9 were not read"),
        (EngineStoppedError("stopping"), grpc.StatusCode.UNAVAILABLE, "stopping"),
        (ExpertServiceError("gone"), grpc.StatusCode.UNAVAILABLE, "gone"),
        (NonFiniteError("not finite"), grpc.StatusCode.INTERNAL, "not finite"),
        (RuntimeError("a secret"), grpc.StatusCode.INTERNAL, "the computation failed; the service's log says why"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_error_has_its_status(error: Exception, code: grpc.StatusCode, message: str) -> None:
    status = status_of(for_caller(error))
    assert (status.code, status.message) == (code, message)
