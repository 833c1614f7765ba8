"""One tiny checkpoint for all tests. Its first decoder layer is dense, so that a layer's index is not its number."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fiddler.checkpoint import Checkpoint
from tests import checkpoints
from tests.cpu_expert_service import in_process


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeepSeek-V2 in float32: MoE layers 1 and 2 with 8 experts of [32, 64]."""
    return checkpoints.write("deepseek_v2", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def checkpoint(tiny: Path) -> Checkpoint:
    return Checkpoint.open(tiny)


@pytest.fixture(scope="session")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[in_process.Service]:
    with in_process.serve(tiny, tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture
def service(server: in_process.Service) -> Iterator[in_process.Service]:
    """A service of the tiny checkpoint, whose streams are all free before and after."""
    yield server
    server.kernel.failure = server.kernel.gate = None
    in_process.wait_until(lambda: in_process.value("fiddler_expert_streams") == 0)
