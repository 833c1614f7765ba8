"""Layers of the same input are multiplied in one call, and each gives what it gives alone."""

from typing import Any

import pytest
import torch
from torch import nn

from fiddler.coding import Code, Coding, ScaleKind
from fiddler.kernels.linear import LinearKernel, shared_kernel
from gpu_service.model_runner.dense.coded import CodedLinear
from gpu_service.model_runner.dense.host import install
from gpu_service.model_runner.dense.siblings import FEW_ROWS
from tests.support.coded_matrices import random_coded

INPUTS = 128
OUTPUTS = {"q_proj": 96, "k_proj": 32, "v_proj": 32}
INT8 = Coding(Code.INT8, ScaleKind.FLOAT32, INPUTS)


class _Attention(nn.Module):
    """Linear layers by transformers' names: plain ones, and the one of keys in codes."""

    q_proj: Any
    k_proj: Any
    v_proj: Any

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        for name, outputs in OUTPUTS.items():
            layer: nn.Module = nn.Linear(INPUTS, outputs, bias=name == "v_proj", dtype=torch.bfloat16)
            if name == "k_proj":
                layer = CodedLinear(random_coded(INT8, outputs, INPUTS, 1.0, generator), None, torch.bfloat16)
            setattr(self, name, layer.requires_grad_(False))
        self.o_proj = nn.Linear(INPUTS, 8, bias=False, dtype=torch.bfloat16).requires_grad_(False)

    def forward(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        return [getattr(self, name)(hidden) for name in OUTPUTS]


@pytest.fixture(name="kernel")
def _kernel() -> LinearKernel:
    kernel = shared_kernel(torch.get_num_threads())
    if kernel is None:
        pytest.skip("the native library was not built, or has no vectors for this CPU")
    return kernel


@pytest.fixture(name="calls")
def _calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many matrices each call of the library multiplies."""
    calls: list[int] = []
    bind = LinearKernel._bind

    def watched(self: LinearKernel, products: Any) -> Any:
        multiply = bind(self, products)

        def compute(rows: torch.Tensor) -> list[torch.Tensor]:
            calls.append(len(products))
            return multiply(rows)

        return compute

    monkeypatch.setattr(LinearKernel, "_bind", watched)
    return calls


def _hidden(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, INPUTS, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


@pytest.mark.parametrize("shape", [(1, 1), (1, FEW_ROWS), (3, 1)])
def test_a_few_rows_are_one_call(shape: tuple[int, ...], kernel: LinearKernel, calls: list[int]) -> None:
    module, hidden = _Attention(), _hidden(*shape)
    install(module, kernel)
    layers: list[Any] = [module.q_proj, module.k_proj, module.v_proj]
    due = [layer._multiply(hidden.reshape(-1, INPUTS)).view(*shape, -1) for layer in layers]
    calls.clear()
    for actual, each in zip(module(hidden), due, strict=True):
        assert torch.equal(actual, each)
    assert calls == [3]
    module.o_proj(hidden)
    assert calls == [3, 1]


def test_more_rows_are_a_call_each(kernel: LinearKernel, calls: list[int]) -> None:
    module = _Attention()
    install(module, kernel)
    module(_hidden(FEW_ROWS + 1))
    assert calls == [1, 1, 1]


def test_nothing_is_left_of_another_input(kernel: LinearKernel, calls: list[int]) -> None:
    module, first, second = _Attention(), _hidden(1), _hidden(2)
    install(module, kernel)
    due = module(second)
    calls.clear()
    module.q_proj(first)  # the other two are not asked for
    for actual, each in zip(module(second), due, strict=True):
        assert torch.equal(actual, each)
    assert calls == [3, 3]
    assert torch.equal(module.q_proj(second), due[0])
    second.zero_()  # the same tensor in the next step, with other values
    query, key, value = module(second)
    assert not query.any()
    assert not key.any()
    assert torch.equal(value, module.v_proj.bias.expand_as(value))


def test_a_weight_that_is_replaced_is_used(kernel: LinearKernel) -> None:
    module, hidden = _Attention(), _hidden(1)
    install(module, kernel)
    module.v_proj.weight = nn.Parameter(torch.zeros_like(module.v_proj.weight), False)
    query, key, value = module(hidden)
    assert torch.equal(value[0], module.v_proj.bias)
    assert query.any()
    assert key.any()


def test_layers_of_other_inputs_stay_apart(kernel: LinearKernel, calls: list[int]) -> None:
    module = _Attention()
    module.k_proj = nn.Linear(INPUTS * 2, 32, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    install(module, kernel)
    module.q_proj(_hidden(1))
    assert calls == [1]
