from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tests.support.fake_server import FakeServer, serving
from tests.support.http_gateways import calling


@pytest.fixture(scope="module")
def _fake() -> Iterator[FakeServer]:
    with serving() as fake:
        yield fake


@pytest.fixture(scope="module")
def _http(_fake: FakeServer) -> Iterator[TestClient]:
    with calling(_fake.target) as http:
        yield http


@pytest.fixture
def server(_fake: FakeServer) -> FakeServer:
    """A GPU service without a model, as at its start."""
    target, fresh = _fake.target, FakeServer("")
    vars(_fake.service).update(vars(fresh.service))
    _fake.target = target
    return _fake


@pytest.fixture
def http(_http: TestClient, server: FakeServer) -> TestClient:
    """A client of a gateway before it."""
    return _http
