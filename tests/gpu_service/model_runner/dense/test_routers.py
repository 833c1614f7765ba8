"""Which routers the native library computes, and of how many rows."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter
from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.granitemoe.configuration_granitemoe import GraniteMoeConfig
from transformers.models.granitemoe.modeling_granitemoe import GraniteMoeTopKRouter
from transformers.models.mixtral.configuration_mixtral import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.qwen3_5_moe.configuration_qwen3_5_moe import Qwen3_5MoeTextConfig
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeTopKRouter
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from fiddler.kernels.linear import LinearKernel, shared_kernel
from fiddler.kernels.routing import RouterKernel
from gpu_service.model_runner.dense import routers
from gpu_service.model_runner.dense.norms import FEW_VALUES

HIDDEN = 256
SIZES: dict[str, Any] = {"hidden_size": HIDDEN, "num_experts_per_tok": 3}
ROUTERS = {
    "mixtral": (MixtralTopKRouter, MixtralConfig(num_local_experts=16, **SIZES)),
    "qwen3_moe": (Qwen3MoeTopKRouter, Qwen3MoeConfig(num_experts=16, norm_topk_prob=True, **SIZES)),
    "not normalised": (Qwen3MoeTopKRouter, Qwen3MoeConfig(num_experts=16, norm_topk_prob=False, **SIZES)),
    "qwen3_5_moe": (Qwen3_5MoeTopKRouter, Qwen3_5MoeTextConfig(num_experts=16, **SIZES)),
    "gpt_oss": (GptOssTopKRouter, GptOssConfig(num_local_experts=16, **SIZES)),
    "granitemoe": (GraniteMoeTopKRouter, GraniteMoeConfig(num_local_experts=16, **SIZES)),
    "glm4_moe": (
        Glm4MoeTopkRouter,
        DeepseekV3Config(n_routed_experts=16, n_group=4, topk_group=2, routed_scaling_factor=2.5, **SIZES),
    ),
}


@pytest.fixture(name="kernel")
def _kernel() -> LinearKernel:
    kernel = shared_kernel(torch.get_num_threads())
    if kernel is None:
        pytest.skip("the native library was not built, or has no vectors for this CPU")
    return kernel


@pytest.fixture(name="rows")
def _rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each call of the library."""
    calls: list[int] = []
    computed = RouterKernel.route

    def watched(router: RouterKernel, rows: torch.Tensor) -> Any:
        calls.append(len(rows))
        return computed(router, rows)

    monkeypatch.setattr(RouterKernel, "route", watched)
    return calls


def _router(cls: Any, config: Any) -> Any:
    router = cls(config).bfloat16().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for tensor in (*router.parameters(), *router.buffers()):
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / 8)
    return router


def _by_expert(weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """[rows, experts]: the weight of each, since not all routers order what they choose."""
    return torch.zeros(len(ids), 16).scatter(1, ids.long(), weights.float())


@pytest.mark.parametrize("name", ROUTERS)
def test_few_rows_are_the_librarys(name: str, kernel: LinearKernel, rows: list[int]) -> None:
    cls, config = ROUTERS[name]
    router = _router(cls, config)
    generator = torch.Generator().manual_seed(1)
    few = torch.randn(4, HIDDEN, generator=generator).bfloat16()
    many = torch.randn(FEW_VALUES // HIDDEN + 1, HIDDEN, generator=generator).bfloat16()
    due, due_of_many = router(few), router(many)
    routers.install(nn.Sequential(router), kernel)
    logits, weights, ids = router(few)
    assert rows == [4]
    assert torch.allclose(logits.float(), due[0].float(), rtol=2.0**-7, atol=1e-3)
    assert torch.allclose(_by_expert(weights, ids), _by_expert(*due[1:]), rtol=2.0**-6)
    assert ids.shape == due[2].shape
    assert all(torch.equal(one, other) for one, other in zip(router(many), due_of_many, strict=True))
    assert rows == [4]
    assert isinstance(router, cls)
    assert type(router).__name__ == cls.__name__


def test_float32_and_other_code_are_left_alone(kernel: LinearKernel, rows: list[int]) -> None:
    wide = _router(*ROUTERS["mixtral"]).float()
    known: Any = MixtralTopKRouter
    other = type("Other", (MixtralTopKRouter,), {"forward": lambda self, hidden: known.forward(self, hidden)})
    changed = _router(other, ROUTERS["mixtral"][1])
    routers.install(nn.Sequential(wide, changed), kernel)
    wide(torch.zeros(1, HIDDEN))
    changed(torch.zeros(1, HIDDEN, dtype=torch.bfloat16))
    assert rows == []
