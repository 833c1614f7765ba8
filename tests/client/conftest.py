from collections.abc import Iterator

import pytest

from tests.support import metrics_pages
from tests.support.fake_server import FakeServer, serving
from tests.support.metrics_pages import Page


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving() as fake:
        yield fake


@pytest.fixture
def page() -> Iterator[Page]:
    with metrics_pages.serving() as served:
        yield served


@pytest.fixture
def pages() -> Iterator[tuple[Page, Page]]:
    """The GPU service's page and the CPU expert service's."""
    with metrics_pages.serving() as gpu_service, metrics_pages.serving() as cpu_expert_service:
        yield gpu_service, cpu_expert_service
