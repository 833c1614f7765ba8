"""Published 8- and 4-bit formats: the matrices of a checkpoint are those that its codes stand for."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fiddler.checkpoint import Checkpoint
from fiddler.coding import Code, CodedTensor, dequantize
from tests.support import coded
from tests.support.checkpoints import write

# sizes that groups of 32 divide, and that are no multiple of a block of 128
SIZES: dict[str, Any] = {"hidden_size": 64, "moe_intermediate_size": 96}


def _experts(name: str) -> bool:
    return ".experts." in name


def _pair(tmp_path: Path, name: str, is_coded: Callable[[str], bool] = _experts) -> tuple[Path, Path]:
    plain = write("qwen3_moe", tmp_path / "plain", **SIZES)
    return plain, coded.rewrite(plain, tmp_path / "coded", name, is_coded)


@pytest.mark.parametrize("name", coded.FORMATS)
def test_every_expert_is_what_its_codes_stand_for(name: str, tmp_path: Path) -> None:
    plain, directory = _pair(tmp_path, name)
    due = load_file(plain / "model.safetensors")
    checkpoint = Checkpoint.open(directory)
    for layer in checkpoint.layers:
        for number, expert in enumerate(layer.experts):
            for part, view in (("gate_proj", expert.gate), ("up_proj", expert.up), ("down_proj", expert.down)):
                assert view is not None
                matrix = checkpoint.matrix(view)
                assert isinstance(matrix, CodedTensor)
                assert torch.equal(dequantize(matrix), due[f"{layer.name}.{number}.{part}.weight"])


@pytest.mark.parametrize("name", coded.FORMATS)
def test_the_bytes_of_experts_and_of_the_rest_are_counted_as_stored(name: str, tmp_path: Path) -> None:
    _, directory = _pair(tmp_path, name, lambda tensor: "_proj." in tensor)
    checkpoint = Checkpoint.open(directory)
    stored = load_file(directory / "model.safetensors")
    of_experts = sum(tensor.nbytes for key, tensor in stored.items() if _experts(key))
    assert checkpoint.expert_bytes == of_experts
    assert checkpoint.dense_bytes == sum(tensor.nbytes for tensor in stored.values()) - of_experts
    assert checkpoint.expert_dtype == torch.float32  # what config.json says the model computes in


def _read_wrong(matrix: CodedTensor) -> Iterator[tuple[str, CodedTensor]]:
    """The ways in which a matrix may be read a little wrong."""
    coding, scales = matrix.coding, matrix.scales
    more = scales + 1 if scales.dtype == torch.uint8 else scales * 1.01  # of a byte, the least that is more
    yield "scales off by 1 %", replace(matrix, scales=more)
    yield "multiplier off by 1 %", replace(matrix, multiplier=matrix.multiplier * 1.01)
    if len(scales) > 1:
        yield "scales shifted by a row", replace(matrix, scales=scales.roll(1, 0))
    if coding.code.bits == 4:
        yield "halves of bytes swapped", replace(matrix, codes=matrix.codes << 4 | matrix.codes >> 4)
    if coding.code in (Code.UINT4, Code.UINT8):
        zeros = torch.full(scales.shape, coding.code.usual_zero) if matrix.zeros is None else matrix.zeros
        beside = (zeros + 1).to(torch.uint8)
        yield "zero points off by one", replace(matrix, coding=replace(coding, has_zeros=True), zeros=beside)


@pytest.mark.parametrize("name", coded.FORMATS)
def test_a_matrix_that_is_read_a_little_wrong_would_be_noticed(name: str, tmp_path: Path) -> None:
    """In every format; tests/gpu_service/moe/test_coded_teeth.py shows it by the logits of some."""
    plain, directory = _pair(tmp_path, name)
    checkpoint = Checkpoint.open(directory)
    matrix = checkpoint.matrix(checkpoint.layers[1].experts[3].down)
    due = load_file(plain / "model.safetensors")["model.layers.1.mlp.experts.3.down_proj.weight"]
    assert isinstance(matrix, CodedTensor)
    assert torch.equal(dequantize(matrix), due)
    for what, other in _read_wrong(matrix):
        assert not torch.equal(dequantize(other), due), what
