from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fiddler.checkpoint import Checkpoint
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.model_runner.dense.host import FEW_PRODUCTS, RowLinear, install, products_per_row
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.model import Model
from gpu_service.moe.dispatcher import Dispatcher
from tests.support.pairs import DEMO

_CPU = torch.device("cpu")

_BFLOAT16_ROUNDING = 2.0**-8
_FLOAT32_SUM = 2.0**-18  # of a few hundred products


@given(inputs=st.integers(1, 300), outputs=st.integers(1, 70), rows=st.integers(1, 3), seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_the_product_is_right_to_the_last_bit_that_bfloat16_has(
    inputs: int, outputs: int, rows: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(inputs, outputs, bias=False, dtype=torch.bfloat16)
    layer.weight = nn.Parameter(torch.randn(outputs, inputs, generator=generator).to(torch.bfloat16), False)
    hidden = torch.randn(rows, 1, inputs, generator=generator).to(torch.bfloat16)
    install(layer, None)
    assert type(layer) is RowLinear
    exact = hidden.double() @ layer.weight.double().T
    magnitude = hidden.double().abs() @ layer.weight.double().abs().T
    error = (layer(hidden).double() - exact).abs()
    assert (error <= _BFLOAT16_ROUNDING * exact.abs() + _FLOAT32_SUM * magnitude).all()


@pytest.mark.parametrize("shape", [(8,), (1, 8), (1, 1, 8), (2, 1, 8), (0, 8)])
def test_the_shape_is_that_of_a_linear_layer(shape: tuple[int, ...]) -> None:
    layer = nn.Linear(8, 5, bias=False, dtype=torch.bfloat16)
    hidden = torch.randn(shape).to(torch.bfloat16)
    expected = layer(hidden)
    install(layer, None)
    assert layer(hidden).shape == expected.shape


def test_a_row_that_is_not_contiguous_is_taken_too() -> None:
    layer = nn.Linear(8, 5, bias=False, dtype=torch.bfloat16)
    hidden = torch.randn(1, 8, 2).to(torch.bfloat16)[..., 0]
    expected = layer(hidden.contiguous())
    install(layer, None)
    torch.testing.assert_close(layer(hidden), expected)


def test_what_was_not_measured_stays_what_it_was() -> None:
    class Own(nn.Linear):
        pass

    module = nn.Sequential(
        nn.Linear(4, 4, bias=True, dtype=torch.bfloat16),
        nn.Linear(4, 4, bias=False, dtype=torch.float32),
        nn.Linear(4, 4, bias=False, dtype=torch.float16),
        Own(4, 4, bias=False, dtype=torch.bfloat16),
        nn.Linear(4, 4, bias=False, dtype=torch.bfloat16),
    )
    last = module[4]
    assert isinstance(last, nn.Linear)
    weight = last.weight
    install(module, None)
    assert [type(child) for child in module] == [nn.Linear, nn.Linear, nn.Linear, Own, RowLinear]
    assert last.weight is weight


def test_products_are_those_of_linear_layers() -> None:
    assert products_per_row(nn.Sequential(nn.Linear(4, 6), nn.Embedding(1000, 4), nn.Linear(4, 2))) == 16
    assert products_per_row(nn.Embedding(10, 4)) == 0
    assert products_per_row(nn.Linear(1024, 1024)) == FEW_PRODUCTS


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("num_tokens", "num_threads"), [(1, 1), (400, 2)])
@torch.inference_mode()
def test_a_small_forward_is_computed_by_one_thread_and_a_large_one_by_all(num_tokens: int, num_threads: int) -> None:
    checkpoint = Checkpoint.open(DEMO)
    experts = _ThreadsSeen(checkpoint)
    model = Model(
        checkpoint,
        Dispatcher(checkpoint, _CPU, experts),
        device=_CPU,
        dtype=torch.bfloat16,
        num_rows=1,
        max_context=512,
    )
    model.cache.set_capacity(512)
    positions = torch.arange(num_tokens)[None]
    model.forward(torch.full_like(positions, 5), positions, first_row=0, wants=Logits.LAST)
    assert torch.get_num_threads() == 2
    assert experts.num_threads == [num_threads] * len(checkpoint.layers)


class _ThreadsSeen(InProcessExperts):
    """Notes what a layer's forward has at hand."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.num_threads: list[int] = []

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        self.num_threads.append(torch.get_num_threads())
        return super().submit(*args, **kwargs)
