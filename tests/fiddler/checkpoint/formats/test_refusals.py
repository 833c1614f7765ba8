"""A coded checkpoint that is not served is refused in one sentence: file, tensor or setting, and what is served."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.errors import UnsupportedDtypeError
from fiddler.coding import CodedTensor, dequantize
from fiddler.expert_math import layer_weights
from gpu_service.model_runner.reading.dense_state import LazyState
from tests.support import coded
from tests.support.checkpoints import write
from tests.support.coded_damage import DENSE, EXPERT, first, of_modelopt
from tests.support.damage import replace
from tests.support.damaged_coded import CASES

Writer = Callable[[str], Path]


@pytest.fixture
def written(tmp_path: Path) -> Writer:
    """Writes a checkpoint in a row of `coded.FORMATS`, or a plain one."""

    def in_format(name: str) -> Path:
        plain = write("qwen3_moe", tmp_path / "plain", hidden_size=64, moe_intermediate_size=96)
        if not name:
            return plain
        return coded.rewrite(plain, tmp_path / "coded", name, lambda tensor: "_proj." in tensor)

    return in_format


def _read(directory: Path) -> None:
    """As a start of the CPU expert service does."""
    checkpoint = Checkpoint.open(directory)
    for layer in checkpoint.layers:
        layer_weights(checkpoint, layer)
    checkpoint.check_scales()


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_in_a_sentence(name: str, written: Writer) -> None:
    case = CASES[name]
    directory = written(case.written)
    case.damage(directory)
    if case.is_read:
        Checkpoint.open(directory)
    with pytest.raises(case.error) as caught:
        _read(directory)
    message = str(caught.value)
    assert re.fullmatch(r"\S[^\n]*\.", message)
    assert str(directory) in message
    for fragment in case.fragments:
        assert fragment in message


@pytest.mark.parametrize("name", coded.FORMATS)
def test_what_is_sound_is_read(name: str, written: Writer) -> None:
    _read(written(name))


@pytest.mark.parametrize("name", ["fp8 block", "awq"])
def test_a_scale_of_a_dense_matrix_that_is_not_a_number_is_refused_when_it_is_decoded(
    name: str, written: Writer
) -> None:
    directory = written(name)
    plane = {"fp8 block": "weight_scale_inv", "awq": "scales"}[name]
    replace(f"{DENSE}.{plane}", first(torch.nan))(directory)
    state = LazyState(Checkpoint.open(directory), torch.float32)
    with pytest.raises(
        UnsupportedDtypeError, match=rf"model.safetensors: '{re.escape(DENSE)}.{plane}' has a scale of nan"
    ):
        _ = state[f"{DENSE}.weight"][...]


def test_settings_in_a_file_of_modelopt_alone_are_read(written: Writer) -> None:
    directory = written("nvfp4 of ModelOpt")
    of_modelopt("NVFP4")(directory)
    checkpoint = Checkpoint.open(directory)
    view = checkpoint.layers[1].experts[3].down
    due = load_file(directory.with_name("plain") / "model.safetensors")[f"{EXPERT}.weight"]
    matrix = checkpoint.matrix(view)
    assert isinstance(matrix, CodedTensor)
    assert torch.equal(dequantize(matrix), due)


def test_a_file_of_modelopt_without_an_algorithm_says_nothing_of_weights(written: Writer) -> None:
    directory = written("")
    of_modelopt(None)(directory)
    assert Checkpoint.open(directory).weight_format == "float32"
