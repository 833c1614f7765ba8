"""Families that the table refuses are refused by the code, too, in one sentence, before they answer anything."""

from pathlib import Path

import pytest

from cpu_expert_service.kernel import PyTorchKernel
from fiddler.checkpoint.errors import CheckpointError
from gpu_service.errors import ModelError
from gpu_service.models.families import REFUSED, refusal
from tests.support.families import tiny
from tests.support.families.engine import Engine

NAMES, SUMS = "have unknown names", "do not combine their projections as silu does"
SYMPTOMS = {
    "diffusion_gemma": "already has other experts",
    "doge": NAMES,
    "inkling2": SUMS,
    "inkling2_text": SUMS,
    "muse_spark": "transposed or not",
    "step3p7": NAMES,
}
"""What the messages say about tiny checkpoints. transformers cannot write such small ones of the other families."""


@pytest.mark.parametrize("family", SYMPTOMS)
def test_a_family_that_computes_something_else_is_refused(family: str, tmp_path: Path) -> None:
    tiny.write(family, tmp_path)
    with pytest.raises((CheckpointError, ModelError)) as caught:
        Engine(tmp_path, PyTorchKernel(1))
    message = str(caught.value)
    assert str(tmp_path) in message
    assert SYMPTOMS[family] in message
    assert "\n" not in message
    assert refusal(tmp_path) == f"{tmp_path / 'config.json'}: model_type: {family} is refused: {REFUSED[family]}"


def test_a_family_that_is_served_is_not_refused(tmp_path: Path) -> None:
    tiny.write("mixtral", tmp_path)
    assert refusal(tmp_path) is None
    (tmp_path / "config.json").unlink()
    assert refusal(tmp_path) is None
