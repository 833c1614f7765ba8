from collections.abc import Iterator

import pytest

from pair import Pair
from tests.support.pairs import DEMO, WarmPair
from tests.support.ports import free_port


@pytest.fixture(scope="session")
def demo_pair() -> Iterator[Pair]:
    """A pair that serves models/demo in float32, with a gateway."""
    float32 = ("--dtype", "float32")
    http = f"127.0.0.1:{free_port()}"
    with WarmPair(DEMO, gpu_arguments=("--device", "cpu", *float32), cpu_arguments=float32, http=http) as running:
        yield running


@pytest.fixture(scope="session")
def url(demo_pair: Pair) -> str:
    """The gateway's URL."""
    return f"http://{demo_pair.http}"
