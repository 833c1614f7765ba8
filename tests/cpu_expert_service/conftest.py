"""One tiny checkpoint for all tests. Its first decoder layer is dense, so that a layer's index is not its number."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fiddler.checkpoint import Checkpoint
from tests.support import checkpoints, in_process_service


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeepSeek-V2 in float32: MoE layers 1 and 2 with 8 experts of [32, 64]."""
    return checkpoints.write("deepseek_v2", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def checkpoint(tiny: Path) -> Checkpoint:
    return Checkpoint.open(tiny)


@pytest.fixture(scope="session")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[in_process_service.Service]:
    with in_process_service.serve(tiny, tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture
def service(server: in_process_service.Service) -> Iterator[in_process_service.Service]:
    """A service of the tiny checkpoint, whose streams are all free before and after."""
    yield server
    server.kernel.failure = server.kernel.gate = None
    in_process_service.wait_until(lambda: in_process_service.value("fiddler_expert_streams") == 0)
