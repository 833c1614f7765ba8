from collections.abc import Iterator

import pytest

from tests.client.fake_server import FakeServer, serving


@pytest.fixture
def served() -> Iterator[FakeServer]:
    """A server of generations, with health and reflection."""
    with serving() as fake:
        yield fake
