from collections.abc import Iterator

import pytest

from tests.support.metrics_pages import Page, serving


@pytest.fixture
def page() -> Iterator[Page]:
    with serving() as served:
        yield served


@pytest.fixture
def pages() -> Iterator[tuple[Page, Page]]:
    """The GPU service's page and the CPU expert service's."""
    with serving() as gpu_service, serving() as cpu_expert_service:
        yield gpu_service, cpu_expert_service
