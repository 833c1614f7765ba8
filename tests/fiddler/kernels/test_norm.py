"""The RMS norm of a few rows, held against transformers' modules."""

from typing import Any

import pytest
import torch
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from fiddler.kernels.native import NativeError
from fiddler.kernels.norm import rms_norm

EPSILON = 1e-5
KINDS = {True: LlamaRMSNorm, False: GptOssRMSNorm}


@pytest.mark.parametrize("rounds_first", KINDS)
@pytest.mark.parametrize("shape", [(1, 4096), (3, 5, 128), (7, 33), (1, 1), (0, 16)])
def test_transformers_norm(shape: tuple[int, ...], rounds_first: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    norm: Any = KINDS[rounds_first](shape[-1], eps=EPSILON).bfloat16().requires_grad_(False)
    norm.weight.copy_(torch.randn(shape[-1], generator=generator))
    for factor in (1.0, 1e-4, 1e4):
        rows = (torch.randn(shape, generator=generator) * factor).bfloat16()
        due = norm(rows)
        actual = rms_norm(rows, norm.weight, EPSILON, rounds_first=rounds_first)
        assert actual.dtype is torch.bfloat16
        assert actual.shape == due.shape
        # the mean is summed in another order, so that a value in a thousand is rounded to the other side
        assert (actual != due).sum() <= due.numel() / 200
        assert torch.allclose(actual.float(), due.float(), rtol=2.0**-7, atol=0.0)


def test_what_is_not_a_number_stays_one() -> None:
    rows = torch.ones(2, 40, dtype=torch.bfloat16)
    rows[1, 7] = torch.nan
    actual = rms_norm(rows, torch.ones(40, dtype=torch.bfloat16), EPSILON, rounds_first=True)
    assert actual[1].isnan().all()
    assert actual[0].isfinite().all()


@pytest.mark.parametrize(
    ("rows", "weight", "message"),
    [
        (torch.ones(2, 8), torch.ones(8).bfloat16(), r"rows: expected contiguous bfloat16 \[..., 8\], got float32"),
        (torch.ones(2, 9).bfloat16(), torch.ones(8).bfloat16(), "rows: expected"),
        (torch.ones(8, 2).bfloat16().T, torch.ones(8).bfloat16(), "rows: expected"),
        (torch.ones(2, 8).bfloat16(), torch.ones(8), "weight: expected contiguous bfloat16"),
        (torch.ones(2, 8).bfloat16(), torch.ones(16).bfloat16()[::2], "weight: expected contiguous bfloat16"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(rows: torch.Tensor, weight: torch.Tensor, message: str) -> None:
    with pytest.raises(NativeError, match=message):
        rms_norm(rows, weight, EPSILON, rounds_first=True)
