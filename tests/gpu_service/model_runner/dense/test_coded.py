"""A layer whose weight stays in codes computes what the decoded one does, on the kernels and without them."""

import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional

from fiddler.coding import Code, Coding, ScaleKind, dequantize
from fiddler.kernels.linear import LinearKernel, shared_kernel
from gpu_service.model_runner.dense import coded as module
from gpu_service.model_runner.dense.coded import CodedEmbedding, CodedLinear
from tests.support.coded_matrices import random_coded

CODINGS = {
    "int8": Coding(Code.INT8, ScaleKind.FLOAT32, 320),
    "fp8": Coding(Code.E4M3, ScaleKind.FLOAT32, 128, 128),
    "int4": Coding(Code.UINT4, ScaleKind.BFLOAT16, 32, has_zeros=True),
    "int4 without zero points": Coding(Code.UINT4, ScaleKind.BFLOAT16, 32),
}
ERRORS = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7}
"""Of the sum of |weight x input|; in bfloat16 the weights that are decoded are rounded, too."""


def _kernel(is_native: bool) -> LinearKernel | None:
    return shared_kernel(1) if is_native else None


@pytest.mark.parametrize("is_native", [True, False])
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("name", CODINGS)
def test_it_computes_what_the_decoded_layer_does(
    name: str, dtype: torch.dtype, is_native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_DECODED_BYTES", 320 * 4 * 50)  # several parts
    generator = torch.Generator().manual_seed(0)
    coded = random_coded(CODINGS[name], 147, 320, 1.0, generator)
    bias = nn.Parameter(torch.randn(147, generator=generator).to(dtype), requires_grad=False)
    layer = CodedLinear(coded, bias, dtype)
    layer.prepare(_kernel(is_native))
    weight = dequantize(coded)
    for rows in (1, 3, 17):
        hidden = torch.randn(1, rows, 320, generator=generator).to(dtype)
        due = functional.linear(hidden.float(), weight, bias.float())
        size = functional.linear(hidden.abs().float(), weight.abs(), bias.abs().float())
        actual = layer(hidden)
        assert actual.dtype is dtype
        assert actual.shape == due.shape
        assert ((actual.float() - due).abs() <= ERRORS[dtype] * size).all()


@pytest.mark.parametrize("shape", [(320,), (1, 1, 320), (2, 1, 320), (0, 320)])
def test_the_shape_is_that_of_a_linear_layer(shape: tuple[int, ...]) -> None:
    layer = CodedLinear(random_coded(CODINGS["int8"], 5, 320, 1.0, torch.Generator()), None, torch.float32)
    layer.prepare(_kernel(True))
    assert layer(torch.zeros(shape)).shape == (*shape[:-1], 5)


def test_codes_are_no_parameters_and_move_with_the_module() -> None:
    coded = random_coded(CODINGS["fp8"], 147, 320, 1.0, torch.Generator())
    codes = weakref.ref(coded.codes)
    layer = CodedLinear(coded, None, torch.float32)
    del coded
    assert not list(layer.parameters())
    assert not layer.state_dict()
    there = layer.to("meta")
    assert codes() is None, "nothing stays where they were"
    assert there.coded.device.type == "meta"
    assert all(plane.device.type == "meta" for plane in there.coded.planes().values())
    there.prepare(_kernel(True))
    assert there(torch.zeros(2, 320, device="meta")).shape == (2, 147), "multiplied where it is"


def test_code_of_a_model_may_read_the_weight() -> None:
    coded = random_coded(CODINGS["int8"], 5, 320, 1.0, torch.Generator())
    layer = CodedLinear(coded, None, torch.bfloat16)
    assert layer.weight.dtype is torch.bfloat16
    assert torch.equal(layer.weight, dequantize(coded, torch.bfloat16))


def test_a_bias_that_is_replaced_counts() -> None:
    layer = CodedLinear(
        random_coded(CODINGS["int8"], 5, 320, 1.0, torch.Generator()), nn.Parameter(torch.ones(5)), torch.float32
    )
    layer.prepare(_kernel(True))
    hidden = torch.zeros(1, 320)
    assert torch.equal(layer(hidden), torch.ones(1, 5))
    assert layer.bias is not None
    layer.bias.data = torch.zeros(5)  # as some recurrent layers do while they call a layer
    assert torch.equal(layer(hidden), torch.zeros(1, 5))


@pytest.mark.parametrize("name", CODINGS)
def test_embeddings_are_rows_of_the_decoded_matrix(name: str) -> None:
    coded = random_coded(CODINGS[name], 147, 320, 1.0, torch.Generator().manual_seed(1))
    embedding = CodedEmbedding(coded, nn.Embedding(147, 320, padding_idx=3), torch.bfloat16)
    ids = torch.tensor([[0, 146, 3], [3, 130, 1]])
    assert torch.equal(embedding(ids), functional.embedding(ids, dequantize(coded, torch.bfloat16)))
    assert embedding.padding_idx == 3
