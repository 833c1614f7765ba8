import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import checkpoints


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    return {family: checkpoints.write(family, root / family) for family in checkpoints.CONFIGS}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = checkpoints.write_large(tmp_path_factory.mktemp("large"), 250_000_000)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def mixtral(published: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(published["mixtral"], tmp_path / "mixtral"))
