"""Checkpoints for the imitated device, and the reason why there may be none."""

from collections.abc import Iterator

import pytest

from tests.support.imitated_cuda.guard import why_impossible
from tests.support.imitated_routes import Case, case_of, few_threads

NUM_TOKENS = 4


@pytest.fixture(scope="package", autouse=True)
def _is_possible() -> None:
    if reason := why_impossible():
        pytest.skip(reason)


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    with few_threads():
        yield


@pytest.fixture(scope="package")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of("mixtral", tmp_path_factory.mktemp("mixtral"), NUM_TOKENS)
