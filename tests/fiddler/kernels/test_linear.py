"""Rows times a matrix, plain or coded, by every tier: held against float64."""

from collections.abc import Iterator

import pytest
import torch

from fiddler.coding import Code, CodedTensor, Coding, ScaleKind, dequantize
from fiddler.expert_math import Matrix
from fiddler.kernels.linear import LinearKernel, can_compute, shared_kernel
from fiddler.kernels.native import NativeError, Pool, available_tiers
from tests.support.coded_matrices import random_coded

FLOAT32_ERROR = 5e-7
"""Of the sum of |weight x input|: float32 sums over some hundreds of inputs."""
BFLOAT16_ERROR = 2.0**-9
"""The same of bfloat16: many rows are multiplied with decoded weights that are rounded to it."""
BFLOAT16_ROUNDING = 2.0**-8
"""Of a result that is rounded to bfloat16."""
OUTPUTS = 147
CODINGS = {
    "int8": Coding(Code.INT8, ScaleKind.FLOAT32, 202),
    "int8 group 32": Coding(Code.INT8, ScaleKind.BFLOAT16, 32),
    "fp8 128x128": Coding(Code.E4M3, ScaleKind.FLOAT32, 128, 128),
    "int4 group 32": Coding(Code.UINT4, ScaleKind.BFLOAT16, 32),
    "int4 group 64 zeros": Coding(Code.UINT4, ScaleKind.FLOAT16, 64, has_zeros=True),
    "mxfp4": Coding(Code.E2M1, ScaleKind.E8M0, 32),
}
INPUTS = {"int8": 202, "fp8 128x128": 320}
"""Those of other codings are 256."""
ROWS = (1, 3, 8, 17, 300)


@pytest.fixture(scope="module", params=available_tiers())
def kernel(request: pytest.FixtureRequest) -> Iterator[LinearKernel]:
    pool = Pool([0, 1][: max(1, torch.get_num_threads())])
    yield LinearKernel(pool, request.param)
    pool.close()


def _check(actual: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    wide, added = weight.double(), 0.0 if bias is None else bias.double()
    due = rows.double() @ wide.T + added
    size = rows.double().abs() @ wide.abs().T + (0.0 if bias is None else bias.double().abs())
    is_exact = rows.dtype is torch.float32
    bound = FLOAT32_ERROR * size if is_exact else BFLOAT16_ERROR * size + BFLOAT16_ROUNDING * due.abs()
    assert actual.dtype is rows.dtype
    assert actual.shape == due.shape
    assert ((actual.double() - due).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CODINGS)
def test_coded_matrices(kernel: LinearKernel, name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    inputs = INPUTS.get(name, 256)
    weight = random_coded(CODINGS[name], OUTPUTS, inputs, 1.0, generator)
    bias = torch.randn(OUTPUTS, generator=generator).to(dtype)
    multiply, add = kernel.prepare(weight), kernel.prepare(weight, bias)
    for count in ROWS:
        rows = torch.randn(count, inputs, generator=generator).to(dtype)
        _check(multiply(rows), rows, dequantize(weight), None)
        _check(add(rows), rows, dequantize(weight), bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [1, 33, 1030])
def test_plain_matrices(kernel: LinearKernel, inputs: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(OUTPUTS, inputs, generator=generator).to(dtype)
    bias = torch.randn(OUTPUTS, generator=generator).to(dtype)
    multiply, add = kernel.prepare(weight), kernel.prepare(weight, bias)
    for count in ROWS:
        rows = torch.randn(count, inputs, generator=generator).to(dtype)
        _check(multiply(rows), rows, weight, None)
        _check(add(rows), rows, weight, bias)


def test_an_input_that_is_far_larger_than_the_others_spoils_none_of_them(kernel: LinearKernel) -> None:
    """A row is never written as 8 bits with one scale."""
    generator = torch.Generator().manual_seed(4)
    weight = random_coded(CODINGS["int8 group 32"], OUTPUTS, 256, 1.0, generator)
    rows = torch.randn(2, 256, generator=generator).to(torch.bfloat16)
    rows[:, 5] = 1000.0
    weight.codes[:, 5] = 0  # so that only the others show
    rest = rows.clone()
    rest[:, 5] = 0
    actual, size = kernel.prepare(weight)(rows).double(), rest.double().abs() @ dequantize(weight).double().abs().T
    due = rest.double() @ dequantize(weight).double().T
    assert ((actual - due).abs() <= BFLOAT16_ERROR * size + BFLOAT16_ROUNDING * due.abs()).all()


def test_rows_need_not_be_adjacent_and_may_be_none(kernel: LinearKernel) -> None:
    weight = torch.randn(5, 8)
    rows = torch.randn(8, 3).T
    torch.testing.assert_close(kernel.prepare(weight)(rows), rows @ weight.T)
    assert kernel.prepare(weight)(torch.empty(0, 8)).shape == (0, 5)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (torch.zeros(2, 7), r"rows: expected bfloat16 or float32 \[rows, 8\], got float32 \[2, 7\]"),
        (torch.zeros(8), r"rows: expected .*, got float32 \[8\]"),
        (torch.zeros(2, 8, dtype=torch.float16), r"rows: expected .*, got float16 \[2, 8\]"),
    ],
)
def test_rows_that_do_not_fit_are_refused(kernel: LinearKernel, rows: torch.Tensor, told: str) -> None:
    with pytest.raises(NativeError, match=told):
        kernel.prepare(torch.zeros(5, 8))(rows)


def test_matrices_that_cannot_be_computed_are_refused(kernel: LinearKernel) -> None:
    with pytest.raises(NativeError, match=r"weight: expected float32, .* \[outputs, inputs\], got int64"):
        kernel.prepare(torch.zeros(5, 8, dtype=torch.int64))
    with pytest.raises(NativeError, match=r"bias: expected float32 \[5\], got float32 \[4\]"):
        kernel.prepare(torch.zeros(5, 8), torch.zeros(4))
    odd = random_coded(Coding(Code.UINT4, ScaleKind.FLOAT32, 24), 5, 48, 1.0, torch.Generator())
    with pytest.raises(NativeError, match="weight: groups of 24 inputs"):
        kernel.prepare(odd)
    assert not can_compute(odd)


def test_a_part_of_a_block_can_be_computed(kernel: LinearKernel) -> None:
    whole = random_coded(CODINGS["fp8 128x128"], 256, 320, 1.0, torch.Generator().manual_seed(5))
    part = CodedTensor(whole.coding, (100, 320), whole.codes[60:160], whole.scales, first_output=60)
    rows = torch.randn(2, 320)
    _check(kernel.prepare(part)(rows), rows, dequantize(whole)[60:160], None)


def test_a_process_has_one_kernel_for_its_linear_layers() -> None:
    kernel = shared_kernel(1)
    assert kernel is shared_kernel(1)
    assert kernel is None or kernel.tier == available_tiers()[-1]


def test_products_of_the_same_rows_are_those_of_each_alone(kernel: LinearKernel) -> None:
    generator = torch.Generator().manual_seed(6)
    plain = torch.randn(OUTPUTS, 256, generator=generator)
    linears: list[tuple[Matrix, torch.Tensor | None]] = [
        (plain.bfloat16(), torch.randn(OUTPUTS, generator=generator)),
        (random_coded(CODINGS["int4 group 32"], 33, 256, 1.0, generator), None),
        (plain[:5].contiguous(), None),
    ]
    together = kernel.prepare_together(linears)
    for dtype in (torch.float32, torch.bfloat16):
        for count in (0, *ROWS):
            rows = torch.randn(count, 256, generator=generator).to(dtype)
            for actual, (weight, bias) in zip(together(rows), linears, strict=True):
                assert torch.equal(actual, kernel.prepare(weight, bias)(rows))


def test_products_of_other_inputs_are_not_computed_together(kernel: LinearKernel) -> None:
    weights = [torch.ones(4, size) for size in (8, 16)]
    with pytest.raises(NativeError, match="matrices of the same inputs"):
        kernel.prepare_together([(weight, None) for weight in weights])
    with pytest.raises(NativeError, match="up to 4 matrices"):
        kernel.prepare_together([(weights[0], None)] * 5)
