"""Shared by the tests of exactness: a checkpoint of each verified family, and transformers' model of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pair import Pair
from tests.support import checkpoints, reference
from tests.support.answer_formats import FORMATS
from tests.support.call_templates import TEMPLATES, write_tokenizer
from tests.support.pairs import DEMO, start, write_tiny


@pytest.fixture(scope="module", params=[*checkpoints.FAMILIES, "demo"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "demo":
        return DEMO
    return write_tiny(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    return reference.load(directory)


@pytest.fixture(scope="session")
def parsed_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The demo model, as one whose answers have Hermes' form and are parsed; it speaks VllmEngine, too."""
    directory = tmp_path_factory.mktemp("parsed")
    write_tokenizer(directory, TEMPLATES[0].source, response_template=FORMATS[0].template)
    shutil.copy(DEMO / "model.safetensors", directory)
    with start(directory, "--vllm-engine") as running:
        yield running
