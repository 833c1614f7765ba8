"""Which norms the native library computes, and of how many rows."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm
from transformers.models.mixtral.modeling_mixtral import MixtralRMSNorm
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRMSNorm

from fiddler.kernels.native import NativeUnavailableError, load
from fiddler.kernels.norm import rms_norm
from gpu_service.model_runner.dense import norms

SIZE = 256
MANY_ROWS = norms.FEW_VALUES // SIZE + 1


@pytest.fixture(name="rows")
def _rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The values of each call of the library."""
    try:
        load()
    except NativeUnavailableError:
        pytest.skip("the native library was not built")
    calls: list[int] = []
    computed = rms_norm

    def watched(rows: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        calls.append(rows.numel() // SIZE)
        return computed(rows, *args, **more)

    monkeypatch.setattr(norms, "rms_norm", watched)
    return calls


def _close(actual: torch.Tensor, due: torch.Tensor) -> bool:
    return torch.allclose(actual.float(), due.float(), rtol=2.0**-7, atol=0.0)


@pytest.mark.parametrize("cls", [MixtralRMSNorm, Qwen3MoeRMSNorm, GptOssRMSNorm])
def test_few_rows_are_the_librarys(cls: type[nn.Module], rows: list[int]) -> None:
    norm: Any = cls(SIZE).bfloat16().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    norm.weight.copy_(torch.randn(SIZE, generator=generator))
    few = torch.randn(1, 3, SIZE, generator=generator).bfloat16()
    many = torch.randn(MANY_ROWS, SIZE, generator=generator).bfloat16()
    due = norm(few), norm(many)
    norms.install(nn.Sequential(norm))
    assert _close(norm(few), due[0])
    assert rows == [3]
    assert torch.equal(norm(many), due[1])
    assert torch.equal(norm(few.mT.contiguous().mT), due[0])
    norm(few.float())
    assert rows == [3]
    assert isinstance(norm, cls)
    assert type(norm).__name__ == cls.__name__


def test_another_norm_is_left_alone(rows: list[int]) -> None:
    norm = Gemma4RMSNorm(SIZE).bfloat16().requires_grad_(False)
    norms.install(nn.Sequential(norm))
    norm(torch.ones(1, SIZE, dtype=torch.bfloat16))
    assert rows == []
    assert type(norm) is Gemma4RMSNorm
