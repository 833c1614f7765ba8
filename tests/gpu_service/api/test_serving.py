"""Whether a model that is served has room for a request."""

from types import SimpleNamespace
from typing import Any

import pytest
from google.rpc import error_details_pb2

from gpu_service.api.serving import ServedModel
from gpu_service.api.statuses import status_of
from gpu_service.errors import QueueFullError


def crowded(max_waiting: int, num_waiting: int) -> Any:
    engine = SimpleNamespace(num_waiting=num_waiting, check_time=lambda priority, deadline: None)
    return SimpleNamespace(max_waiting=max_waiting, engine=engine)


@pytest.mark.parametrize(("max_waiting", "num_waiting"), [(2, 0), (2, 1), (0, 0)])
def test_there_is_room_where_fewer_wait_than_may(max_waiting: int, num_waiting: int) -> None:
    ServedModel.check_room(crowded(max_waiting, num_waiting))


@pytest.mark.parametrize("num_waiting", [2, 3])
def test_a_full_queue_refuses_and_says_when_to_come_again(num_waiting: int) -> None:
    with pytest.raises(QueueFullError, match=f"{num_waiting} requests wait already") as raised:
        ServedModel.check_room(crowded(2, num_waiting))
    (detail,) = status_of(raised.value).details
    assert isinstance(detail, error_details_pb2.RetryInfo)
    assert detail.retry_delay.seconds == 1
