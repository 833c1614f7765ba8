"""Pairs of real processes on small checkpoints."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pair import Pair
from tests import checkpoints

FLOAT32 = ("--dtype", "float32")
DEMO = Path(__file__).parents[2] / "models" / "demo"


def write_tiny(directory: Path, family: str = "mixtral") -> Path:
    """A tiny float32 checkpoint with a tokenizer that never ends by itself, so that lengths are the test's choice."""
    checkpoints.write(family, directory, eos_token_id=None)
    checkpoints.write_tokenizer(directory)
    return directory


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral."""
    return write_tiny(tmp_path_factory.mktemp("mixtral"))


@pytest.fixture(scope="session")
def pair(tiny: Path) -> Iterator[Pair]:
    """A pair that serves the tiny Mixtral in float32 for all tests; a test that breaks something starts its own."""
    with start(tiny) as running:
        yield running


def start(model: Path, *arguments: str) -> Pair:
    """A pair on the CPU in float32, not started yet; more arguments go to the GPU service."""
    return Pair(model, gpu_arguments=("--device", "cpu", *FLOAT32, *arguments), cpu_arguments=FLOAT32)
