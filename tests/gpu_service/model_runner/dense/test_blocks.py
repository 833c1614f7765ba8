"""Decode steps in bfloat16 on the CPU: one native call computes what a decoder layer does before its experts."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fiddler.checkpoint import Checkpoint
from fiddler.kernels.linear import shared_kernel
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.model_runner.dense import blocks
from gpu_service.model_runner.dense.blocks import BlockRows, HostBlock
from gpu_service.model_runner.forward_input import Logits, Span
from gpu_service.model_runner.model import Model
from gpu_service.moe.dispatcher import Dispatcher
from tests.support.families import tiny

CPU = torch.device("cpu")
ROUNDING = 2.0**-8
PROMPTS = [list(range(5, 24)), list(range(30, 41)), list(range(50, 53))]
KNOWN = ["mixtral", "qwen2_moe", "qwen3_moe", "qwen3_vl_moe", "gpt_oss", "dots1", "glm4_moe", "minimax_m2", "olmoe"]
UNKNOWN = ["deepseek_v3", "granitemoe", "flex_olmo", "qwen3_next"]


class Calls:
    """The layers that were computed natively, each beside what the layer's own code gives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.layers: dict[HostBlock, Any] = {}
        own, calls = HostBlock.compute, self

        def compute(host: HostBlock, hidden: torch.Tensor, **more: Any) -> Any:
            computed = own(host, hidden, **more)
            if computed is not None:
                calls.rows.append(len(hidden))
                assert isinstance(computed, BlockRows), "experts in this process are not sent to"
                calls._compare(calls.layers[host], hidden, computed, more)
            return computed

        monkeypatch.setattr(HostBlock, "compute", compute)

    def model(self, family: str, directory: Path, dtype: torch.dtype = torch.bfloat16) -> Model:
        checkpoint = Checkpoint.open(tiny.write(family, directory))
        dispatcher = Dispatcher(checkpoint, CPU, InProcessExperts(checkpoint))
        model = Model(checkpoint, dispatcher, device=CPU, dtype=dtype, num_rows=len(PROMPTS), max_context=64)
        modules: list[Any] = list(model._module.modules())
        self.layers = {module.host_block: module for module in modules if hasattr(module, "host_block")}
        for row, prompt in enumerate(PROMPTS):
            forward(model, [prompt], [0], row)
        return model

    @staticmethod
    def _compare(layer: Any, hidden: torch.Tensor, computed: tuple[torch.Tensor, ...], more: dict[str, Any]) -> None:
        attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden), **more)
        residual = hidden + attended
        for actual, due in zip(computed, (residual, layer.post_attention_layernorm(residual)), strict=True):
            assert actual.shape == due.shape
            error = (actual.float() - due.float()).abs()
            assert (error <= 4 * ROUNDING * (due.float().abs() + due.float().abs().mean())).all()


@pytest.fixture(name="calls")
def _calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    if shared_kernel(torch.get_num_threads()) is None:
        pytest.skip("the native library was not built, or has no vectors for this CPU")
    return Calls(monkeypatch)


def forward(model: Model, token_ids: list[list[int]], positions: list[int], first_row: int = 0) -> torch.Tensor:
    tokens = torch.tensor(token_ids)
    starts = torch.tensor(positions)[:, None] + torch.arange(tokens.shape[1])
    with torch.inference_mode():
        return model.forward(tokens, starts, first_row=first_row, wants=Logits.LAST)


@pytest.mark.parametrize("family", KNOWN)
def test_decode_steps_of_known_layers(family: str, tmp_path: Path, calls: Calls) -> None:
    model = calls.model(family, tmp_path)
    assert calls.rows == []
    assert calls.layers
    lengths = [len(prompt) for prompt in PROMPTS]
    for step in range(2):
        logits = forward(model, [[7], [8], [9]], [length + step for length in lengths])
        assert logits.isfinite().all()
    forward(model, [[7]], [lengths[1] + 2], first_row=1)
    assert calls.rows == [3] * 2 * len(calls.layers) + [1] * len(calls.layers)


@pytest.mark.parametrize("family", UNKNOWN)
def test_other_layers_are_computed_by_their_own_code(family: str, tmp_path: Path, calls: Calls) -> None:
    model = calls.model(family, tmp_path)
    forward(model, [[7], [8], [9]], [len(prompt) for prompt in PROMPTS])
    assert calls.layers == {}
    assert calls.rows == []


def test_what_is_no_decode_step_is_computed_by_the_layers_own_code(tmp_path: Path, calls: Calls) -> None:
    model = calls.model("mixtral", tmp_path)
    forward(model, [[7, 8]], [len(PROMPTS[0])])  # two tokens
    spans = [
        Span(row=0, start=len(PROMPTS[0]), token_ids=[7], length=len(PROMPTS[0]) + 1, logits=Logits.LAST),
        Span(row=2, start=3, token_ids=[8, 9, 10], length=6, logits=Logits.LAST),
    ]
    with torch.inference_mode():
        model.compute(spans)
    assert calls.rows == []


def test_float32_is_left_to_transformers(tmp_path: Path, calls: Calls) -> None:
    model = calls.model("mixtral", tmp_path, torch.float32)
    forward(model, [[7], [8], [9]], [len(prompt) for prompt in PROMPTS])
    assert calls.layers == {}
    assert calls.rows == []


@pytest.mark.parametrize("part", ["input_layernorm", "self_attn", "q_proj", "turn"])
def test_a_layer_with_a_part_that_is_not_known_is_left_alone(
    part: str, tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    if part == "turn":
        monkeypatch.setattr(blocks, "_turn_of", lambda attention: None)
    own = blocks.install

    def install(module: Any, *more: Any) -> None:
        layer = module.model.layers[1]
        owner = layer.self_attn if part == "q_proj" else layer
        if part != "turn":
            known: Any = type(getattr(owner, part))
            changed: dict[str, Any] = {"rounds_first": None, "is_native": False}
            changed["forward"] = lambda self, *args, **kwargs: known.forward(self, *args, **kwargs)
            getattr(owner, part).__class__ = type("Other", (known,), changed)
        own(module, *more)

    monkeypatch.setattr(blocks, "install", install)
    calls.model("mixtral", tmp_path)
    assert len(calls.layers) == (0 if part == "turn" else 3)
