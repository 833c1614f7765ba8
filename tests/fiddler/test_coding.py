"""What coded matrices stand for, held against computations of their own."""

from functools import partial

import pytest
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from fiddler import coding as coding_module
from fiddler.coding import Code, CodedTensor, Coding, ScaleKind, dequantize, dequantize_bytes
from tests.support.memory_use import peak_bytes

ROWS, INPUTS = 6, 128


def _bytes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def test_fp4_in_groups_of_32_is_what_transformers_makes_of_it() -> None:
    blocks, scales = (
        _bytes(2, ROWS, INPUTS // 32, 16),
        torch.randint(0, 255, (2, ROWS, INPUTS // 32), dtype=torch.uint8),
    )
    due = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).transpose(1, 2)
    coding = Coding(Code.E2M1, ScaleKind.E8M0, 32)
    for number in range(2):
        coded = CodedTensor(coding, (ROWS, INPUTS), blocks[number].flatten(-2), scales[number])
        assert torch.equal(dequantize(coded), due[number])


def test_an_exponent_of_255_is_not_a_number() -> None:
    scales = torch.tensor([[0, 1, 254, 255]], dtype=torch.uint8)
    coded = CodedTensor(
        Coding(Code.E2M1, ScaleKind.E8M0, 32), (1, INPUTS), torch.full((1, 64), 0x22, dtype=torch.uint8), scales
    )
    values = dequantize(coded)[0, ::32]
    assert values[:3].tolist() == [2.0**-127, 2.0**-126, 2.0**127]
    assert values[3].isnan()


@pytest.mark.parametrize(("outputs", "inputs"), [(256, 256), (192, 128), (576, 200)])
def test_fp8_blocks_at_the_edges_may_be_partial(outputs: int, inputs: int) -> None:
    codes = torch.randn(outputs, inputs).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-outputs // 128), -(-inputs // 128))
    coded = CodedTensor(
        Coding(Code.E4M3, ScaleKind.FLOAT32, 128, 128), (outputs, inputs), codes.view(torch.uint8), scales
    )
    spread = scales.repeat_interleave(128, 0)[:outputs].repeat_interleave(128, 1)[:, :inputs]
    assert torch.equal(dequantize(coded), codes.float() * spread)


def test_a_part_of_a_matrix_may_begin_within_a_block() -> None:
    codes, scales = torch.randn(200, 128).to(torch.float8_e4m3fn).view(torch.uint8), torch.rand(2, 1)
    coding = Coding(Code.E4M3, ScaleKind.FLOAT32, 128, 128)
    whole = dequantize(CodedTensor(coding, (200, 128), codes, scales))
    part = CodedTensor(coding, (100, 128), codes[100:], scales, first_output=100)
    assert torch.equal(dequantize(part), whole[100:])


@pytest.mark.parametrize("with_zeros", [False, True])
@pytest.mark.parametrize("scale", [ScaleKind.BFLOAT16, ScaleKind.FLOAT16, ScaleKind.FLOAT32])
def test_the_low_half_of_a_byte_is_the_first_of_two_integers(scale: ScaleKind, with_zeros: bool) -> None:
    integers = torch.randint(0, 16, (ROWS, INPUTS))
    scales = torch.rand(ROWS, INPUTS // 32).to(scale.dtype)
    zeros = torch.randint(0, 16, (ROWS, INPUTS // 32), dtype=torch.uint8) if with_zeros else None
    codes = (integers[:, ::2] | integers[:, 1::2] << 4).to(torch.uint8)
    coding = Coding(Code.UINT4, scale, 32, has_zeros=with_zeros)
    values = dequantize(CodedTensor(coding, (ROWS, INPUTS), codes, scales, zeros))
    for row, column in ((0, 0), (1, 1), (2, 33), (5, 127)):
        zero = 8 if zeros is None else int(zeros[row, column // 32])
        assert values[row, column] == float(integers[row, column] - zero) * scales[row, column // 32].float()


@pytest.mark.parametrize(("code", "zero"), [(Code.INT8, 0), (Code.UINT8, 128)])
def test_bytes_are_signed_or_offset_by_128(code: Code, zero: int) -> None:
    codes, scales = _bytes(ROWS, INPUTS), torch.rand(ROWS, 1)
    integers = codes.view(torch.int8) if code is Code.INT8 else codes.int() - zero
    coded = CodedTensor(Coding(code, ScaleKind.FLOAT32, INPUTS), (ROWS, INPUTS), codes, scales)
    assert torch.equal(dequantize(coded), integers.float() * scales)


def test_a_multiplier_counts_for_the_whole_matrix_and_rounding_comes_last() -> None:
    codes, scales = (
        _bytes(ROWS, INPUTS // 2),
        torch.randn(ROWS, INPUTS // 16).abs().to(torch.float8_e4m3fn).view(torch.uint8),
    )
    coding = Coding(Code.E2M1, ScaleKind.E4M3, 16)
    plain = dequantize(CodedTensor(coding, (ROWS, INPUTS), codes, scales))
    coded = CodedTensor(coding, (ROWS, INPUTS), codes, scales, multiplier=0.25)
    assert torch.equal(dequantize(coded), plain * 0.25)
    assert torch.equal(dequantize(coded, torch.bfloat16), (plain * 0.25).to(torch.bfloat16))


CODINGS = (
    Coding(Code.E4M3, ScaleKind.FLOAT32, 128, 128),
    Coding(Code.E4M3, ScaleKind.E8M0, 32),
    Coding(Code.INT8, ScaleKind.BFLOAT16, 320),
    Coding(Code.UINT8, ScaleKind.FLOAT16, 32, has_zeros=True),
    Coding(Code.UINT4, ScaleKind.BFLOAT16, 32),
    Coding(Code.UINT4, ScaleKind.FLOAT16, 64, has_zeros=True),
    Coding(Code.E2M1, ScaleKind.E4M3, 16),
)
"""Of 320 inputs."""


def _random(coding: Coding, outputs: int, inputs: int = 320) -> CodedTensor:
    first = 37 if coding.group_outputs > 1 else 0
    groups = (-(-(first + outputs) // coding.group_outputs), coding.num_groups(inputs))
    kind = coding.scale.dtype
    scales = torch.randint(100, 120, groups).to(kind) if kind is torch.uint8 else torch.rand(groups).to(kind)
    codes = torch.randint(0, 120, (outputs, coding.row_bytes(inputs)), dtype=torch.uint8)
    zeros = torch.randint(0, 16, groups, dtype=torch.uint8) if coding.has_zeros else None
    return CodedTensor(coding, (outputs, inputs), codes, scales, zeros, first_output=first)


@pytest.mark.parametrize("coding", CODINGS, ids=lambda coding: coding.name)
def test_a_large_matrix_is_decoded_some_rows_at_a_time(coding: Coding, monkeypatch: pytest.MonkeyPatch) -> None:
    coded = _random(coding, 201)
    whole = {dtype: dequantize(coded, dtype) for dtype in (torch.float32, torch.bfloat16)}
    for at_a_time in (1, 320 * 100, 320 * 200, 320 * 201):
        monkeypatch.setattr(coding_module, "_WEIGHTS_AT_A_TIME", at_a_time)
        for dtype, due in whole.items():
            assert torch.equal(dequantize(coded, dtype), due)


@pytest.mark.parametrize("coding", CODINGS, ids=lambda coding: coding.name)
def test_decoding_takes_no_more_memory_than_is_said(coding: Coding, monkeypatch: pytest.MonkeyPatch) -> None:
    coded = _random(coding, 1000)
    dequantize(coded)  # makes the tables that stay
    for at_a_time in (320 * 100, 320 * 1000):
        monkeypatch.setattr(coding_module, "_WEIGHTS_AT_A_TIME", at_a_time)
        for dtype in (torch.float32, torch.bfloat16):
            peak = peak_bytes(partial(dequantize, coded, dtype))
            said = dequantize_bytes(coded.shape, dtype)
            assert 1000 * 320 * dtype.itemsize < peak <= said
            assert said < peak * 6, "not much more either"
