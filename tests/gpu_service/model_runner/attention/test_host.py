"""Decode steps in bfloat16 on the CPU: the native kernels compute the attention that the model's own function would."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from fiddler.checkpoint import Checkpoint
from fiddler.kernels.attention import AttentionKernel
from fiddler.kernels.linear import shared_kernel
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.model_runner.attention.functions import AttentionFunctions
from gpu_service.model_runner.attention.host import HostAttention
from gpu_service.model_runner.dense import blocks
from gpu_service.model_runner.forward_input import Logits, Span
from gpu_service.model_runner.model import Model
from gpu_service.moe.dispatcher import Dispatcher
from tests.support.families import tiny

CPU = torch.device("cpu")
ROUNDING = 2.0**-8
PROMPTS = [list(range(5, 24)), list(range(30, 41)), list(range(50, 53))]
FAMILIES = {
    # layers with attention over keys and values, and whether all rows are computed at once
    "mixtral": True,
    "gpt_oss": True,
    "deepseek_v3": True,
    "qwen3_next": False,
}


def _model(family: str, directory: Path, dtype: torch.dtype = torch.bfloat16) -> Model:
    checkpoint = Checkpoint.open(tiny.write(family, directory))
    dispatcher = Dispatcher(checkpoint, CPU, InProcessExperts(checkpoint))
    return Model(checkpoint, dispatcher, device=CPU, dtype=dtype, num_rows=len(PROMPTS), max_context=64)


class _Calls:
    """What the native kernel was called for, and the largest difference from the model's own function."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.is_exact = True
        self._kernel = AttentionKernel.attend
        self._host = HostAttention.attend
        calls = self

        def attend(kernel: AttentionKernel, queries: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
            calls.rows.append(len(queries))
            return calls._kernel(kernel, queries, *args, **more)

        def compared(self: HostAttention, module: nn.Module, *tensors: Any, **more: Any) -> Any:
            output, _ = calls._host(self, module, *tensors, **more)
            wide = [each.float() if each is not None and each.is_floating_point() else each for each in tensors]
            due, _ = self._functions.of(module)(module, *wide, **more)
            calls.is_exact &= output.shape == due.shape
            calls.is_exact &= bool(((output.float() - due).abs() <= ROUNDING * (due.abs() + 1e-3)).all())
            return output, None

        # which would compute it as part of a layer
        monkeypatch.setattr(blocks, "install", lambda *_: None)
        monkeypatch.setattr(AttentionKernel, "attend", attend)
        monkeypatch.setattr(HostAttention, "attend", compared)


@pytest.fixture(name="calls")
def _calls(monkeypatch: pytest.MonkeyPatch) -> _Calls:
    if shared_kernel(torch.get_num_threads()) is None:
        pytest.skip("the native library was not built, or has no vectors for this CPU")
    return _Calls(monkeypatch)


def _prefill(model: Model) -> None:
    for row, prompt in enumerate(PROMPTS):
        _forward(model, [prompt], [0], row)


def _forward(model: Model, token_ids: list[list[int]], positions: list[int], first_row: int = 0) -> torch.Tensor:
    tokens = torch.tensor(token_ids)
    starts = torch.tensor(positions)[:, None] + torch.arange(tokens.shape[1])
    with torch.inference_mode():
        return model.forward(tokens, starts, first_row=first_row, wants=Logits.LAST)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_decode_step(family: str, tmp_path: Path, calls: _Calls) -> None:
    model = _model(family, tmp_path)
    calls.rows.clear()  # of the trial of spans
    _prefill(model)
    assert calls.rows == []
    lengths = [len(prompt) for prompt in PROMPTS]
    for step in range(2):
        logits = _forward(model, [[7], [8], [9]], [length + step for length in lengths])
        assert logits.isfinite().all()
    assert calls.is_exact
    assert calls.rows
    assert set(calls.rows) == ({len(PROMPTS)} if FAMILIES[family] else {1})


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_what_decodes_beside_a_prompt(family: str, tmp_path: Path, calls: _Calls) -> None:
    model = _model(family, tmp_path)
    assert model.packs_spans
    _prefill(model)
    calls.rows.clear()
    spans = [
        Span(row=row, start=len(PROMPTS[row]), token_ids=[7], length=len(PROMPTS[row]) + 1, logits=Logits.LAST)
        for row in range(2)
    ]
    spans.append(Span(row=2, start=3, token_ids=[8, 9, 10], length=6, logits=Logits.LAST))
    with torch.inference_mode():
        logits = model.compute(spans)
    assert len(logits) == 3
    assert calls.is_exact
    assert set(calls.rows) == {2}


def test_float32_is_left_to_transformers(tmp_path: Path, calls: _Calls) -> None:
    model = _model("mixtral", tmp_path, torch.float32)
    _prefill(model)
    _forward(model, [[7], [8], [9]], [len(prompt) for prompt in PROMPTS])
    assert calls.rows == []


class _Attention(nn.Module):
    """What attention functions ask of a module."""

    num_key_value_groups = 2
    is_causal = True

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config


class _Config:
    _attn_implementation_internal = "sdpa"


@pytest.mark.parametrize(
    "change",
    [
        {"attention_mask": torch.zeros(2, 1, 1, 9, dtype=torch.bfloat16).index_fill_(3, torch.tensor([2]), -1.5)},
        {"attention_mask": torch.ones(2, 4, 1, 9, dtype=torch.bool)},
        {"attention_mask": torch.ones(2, 1, 1, 18, dtype=torch.bool)[..., ::2]},
        {"position_bias": torch.ones(2, 4, 1, 9, dtype=torch.bfloat16)},
        {"query": torch.ones(2, 4, 2, 8, dtype=torch.bfloat16)},
        {"dropout": 0.5},
    ],
    ids=["a bias as a mask", "a mask of each head", "a mask with gaps", "position bias", "two tokens", "dropout"],
)
def test_what_is_no_plain_attention_of_one_token_is_left_to_the_models_function(
    change: dict[str, Any], calls: _Calls
) -> None:
    module = _Attention(_Config())
    functions = AttentionFunctions(module)
    kernel = shared_kernel(torch.get_num_threads())
    assert kernel is not None
    generator = torch.Generator().manual_seed(1)
    keys, values = (torch.randn(2, 2, 9, 8, generator=generator).bfloat16() for _ in range(2))
    query = torch.randn(2, 4, 1, 8, generator=generator).bfloat16()
    arguments = {"query": query, "key": keys, "value": values, "attention_mask": None} | change
    torch.manual_seed(3)
    due, _ = sdpa_attention_forward(module, **arguments)
    torch.manual_seed(3)
    actual, _ = calls._host(HostAttention(functions, AttentionKernel(kernel)), module, **arguments)
    assert torch.equal(actual, due)
    assert calls.rows == []
