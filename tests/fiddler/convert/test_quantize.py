"""Codes and scales of one matrix."""

import pytest
import torch

from fiddler.coding import Code, CodedTensor, dequantize
from fiddler.convert import native_quantize
from fiddler.convert.quantize import coded_bytes, quantize, quantize_rows, quantize_rows_by_pytorch
from fiddler.convert.recipe import ExpertFormat

KINDS: tuple[ExpertFormat, ...] = ("int8", "int4")


def _weights(rows: int = 48, inputs: int = 256) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(3)) * 0.02


def _error(coded: CodedTensor, weights: torch.Tensor) -> float:
    return float((dequantize(coded) - weights.float()).norm() / weights.float().norm())


def _rounded_to_largest(weights: torch.Tensor) -> torch.Tensor:
    """4 bits in groups of 32 without a search: the largest magnitude is 7."""
    groups = weights.view(-1, 32)
    scales = (groups.abs().amax(1, keepdim=True) / 7).bfloat16().float()
    return ((groups / scales).round().clamp(-8, 7) * scales).view_as(weights)


def test_int8_rounds_each_weight_to_the_nearest_code() -> None:
    weights = _weights()
    coded = quantize(weights, "int8")
    assert coded.coding.code is Code.INT8
    assert coded.scales.shape == (48, 1)
    scales = coded.scales.float()
    # half a step, and what the largest loses since its scale is rounded to 8 bits
    assert ((dequantize(coded) - weights).abs() <= scales * (0.5 + 127 / 256)).all()
    assert _error(coded, weights) < 0.009


def test_the_search_of_int4_leaves_less_than_the_largest_weight_does() -> None:
    weights = _weights()
    coded = quantize(weights, "int4")
    assert coded.coding.code is Code.UINT4
    assert coded.scales.shape == (48, 8)
    plain = float((_rounded_to_largest(weights) - weights).norm() / weights.norm())
    assert _error(coded, weights) < 0.92 * plain


def test_int4_codes_what_16_levels_hold_exactly() -> None:
    levels = torch.tensor([*range(-8, 8)] * 2).float()
    weights = torch.stack([levels, -levels, levels.flip(0)]) * 0.0625
    assert torch.equal(dequantize(quantize(weights, "int4")), weights)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_share_the_rows_and_change_nothing(kind: ExpertFormat) -> None:
    weights = _weights(rows=200)
    one, three = quantize(weights, kind), quantize(weights, kind, num_threads=3)
    assert torch.equal(one.codes, three.codes)
    assert torch.equal(one.scales, three.scales)
    assert coded_bytes(kind, (200, 256)) == one.nbytes
    weights[199, 0] = torch.nan
    with pytest.raises(ValueError, match="infinite or not a number"):
        quantize(weights, kind, num_threads=3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [2.0**-90, 2.0**90])
def test_the_size_of_weights_does_not_matter(kind: ExpertFormat, size: float) -> None:
    weights = _weights()
    expected = dequantize(quantize(weights, kind)).double() * size
    assert torch.equal(dequantize(quantize(weights * size, kind)).double(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_and_numbers_below_all_scales_are_zeros(kind: ExpertFormat) -> None:
    weights = torch.zeros(2, 64)
    weights[1] = 1e-38
    coded = quantize(weights, kind)
    assert torch.equal(dequantize(coded), torch.zeros(2, 64))
    assert torch.isfinite(coded.scales).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_that_is_not_finite_is_refused(kind: ExpertFormat, bad: float, dtype: torch.dtype) -> None:
    weights = _weights().to(dtype)
    weights[47, 255] = bad
    with pytest.raises(ValueError, match="infinite or not a number"):
        quantize(weights, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_strides_and_parts_do_not_matter(kind: ExpertFormat, dtype: torch.dtype) -> None:
    weights = _weights().to(dtype)
    expected = quantize(weights, kind)
    every_other = torch.stack((weights, torch.zeros_like(weights)), dim=1).flatten(0, 1)[::2]
    for strided in (weights.t().contiguous().t(), every_other):
        assert not strided.is_contiguous()
        found = quantize(strided, kind)
        assert torch.equal(found.codes, expected.codes)
        assert torch.equal(found.scales, expected.scales)
    codes, scales = torch.zeros_like(expected.codes), torch.zeros_like(expected.scales)
    for part in (slice(0, 7), slice(7, 48)):
        quantize_rows(weights[part], kind, codes[part], scales[part])
    assert torch.equal(codes, expected.codes)
    assert torch.equal(scales, expected.scales)
    assert _error(expected, weights) > 0


@pytest.mark.skipif(not native_quantize.is_built(), reason="the native library is not built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inputs", [32, 96, 1024])
@pytest.mark.parametrize("kind", KINDS)
def test_the_native_library_gives_the_same_codes_and_scales(
    kind: ExpertFormat, inputs: int, dtype: torch.dtype
) -> None:
    sizes = torch.randn(37, 1, generator=torch.Generator().manual_seed(5)).exp()
    weights = (_weights(37, inputs) * sizes).to(dtype)
    weights[3, :32] = 0
    native = quantize(weights, kind)
    codes, scales = torch.zeros_like(native.codes), torch.zeros_like(native.scales)
    quantize_rows_by_pytorch(weights, kind, codes, scales)
    assert torch.equal(native.codes, codes)
    assert torch.equal(native.scales, scales)
    wide = torch.cat((weights, weights), dim=1)[:, :inputs]  # rows apart
    assert torch.equal(quantize(wide, kind).codes, codes)
