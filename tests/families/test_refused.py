"""Families that the table refuses are refused by the code, too, in one sentence, before they answer anything."""

import re
from pathlib import Path

import pytest

from cpu_expert_service.kernel import PyTorchKernel
from fiddler.checkpoint_errors import CheckpointError
from gpu_service.families import REFUSED
from gpu_service.model_errors import ModelError
from tests.families import tiny
from tests.families.engine import Engine

BUILDABLE = sorted(REFUSED)


@pytest.mark.parametrize("family", BUILDABLE)
def test_a_family_that_computes_something_else_is_refused(family: str, tmp_path: Path) -> None:
    tiny.write(family, tmp_path)
    with pytest.raises((CheckpointError, ModelError)) as caught:
        Engine(tmp_path, PyTorchKernel(1))
    assert re.fullmatch(r"\S[^\n]*", str(caught.value))
    assert str(tmp_path) in str(caught.value)
