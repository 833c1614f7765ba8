"""Shared by the tests of exactness: a checkpoint of each verified family, and transformers' model of it."""

from pathlib import Path
from typing import Any

import pytest

from tests.support import checkpoints, reference
from tests.support.pairs import DEMO, write_tiny


@pytest.fixture(scope="module", params=[*checkpoints.FAMILIES, "demo"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "demo":
        return DEMO
    return write_tiny(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    return reference.load(directory)
