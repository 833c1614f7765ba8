import pytest

from gpu_service.engine.request import Request
from gpu_service.engine.request_ids import RequestIds
from gpu_service.errors import DuplicateIdError
from tests.support.requests import request_of


def _request(request_id: str) -> Request:
    return request_of([1], request_id=request_id)


def test_an_id_is_one_requests_until_it_ends() -> None:
    ids, first, second = RequestIds(), _request("a"), _request("a")
    ids.add(first)
    with pytest.raises(DuplicateIdError, match="named 'a'"):
        ids.add(second)
    assert ids.end(first)
    ids.add(second)
    assert ids.abort("a") is second
    assert ids.abort("a") is None


def test_an_aborted_request_that_ends_late_leaves_its_ids_next_bearer_alone() -> None:
    ids, first, second = RequestIds(), _request("a"), _request("a")
    ids.add(first)
    assert ids.abort("a") is first
    ids.add(second)
    assert not ids.end(first), "it was aborted"
    assert ids.abort("a") is second
    assert not ids.end(second)


def test_a_request_without_an_id_ends_as_itself() -> None:
    ids, nameless = RequestIds(), _request("")
    ids.add(nameless)
    assert ids.end(nameless)
