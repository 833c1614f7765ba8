import grpc
import pytest

from gpu_service.engine import EngineStoppedError
from gpu_service.event_queue import SlowReaderError
from gpu_service.expert_client import ExpertServiceError
from gpu_service.kv_budget import NeverFitsError
from gpu_service.request_ids import DuplicateIdError
from gpu_service.scheduler import QueueFullError
from gpu_service.statuses import status_of
from gpu_service.token_choice import NotFiniteError


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (NeverFitsError("max_tokens", "too many"), grpc.StatusCode.INVALID_ARGUMENT, "max_tokens: too many"),
        (DuplicateIdError("it is under way"), grpc.StatusCode.ALREADY_EXISTS, "request_id: it is under way"),
        (QueueFullError("9 wait"), grpc.StatusCode.RESOURCE_EXHAUSTED, "9 wait"),
        (SlowReaderError("9 were not read"), grpc.StatusCode.RESOURCE_EXHAUSTED, "9 were not read"),
        (EngineStoppedError("stopping"), grpc.StatusCode.UNAVAILABLE, "stopping"),
        (ExpertServiceError("gone"), grpc.StatusCode.UNAVAILABLE, "gone"),
        (NotFiniteError("not finite"), grpc.StatusCode.INTERNAL, "not finite"),
        (RuntimeError("a secret"), grpc.StatusCode.INTERNAL, "the computation failed; the service's log says why"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_error_has_its_status(error: Exception, code: grpc.StatusCode, message: str) -> None:
    status = status_of(error)
    assert (status.code, status.message) == (code, message)
    assert status_of(status) is status
