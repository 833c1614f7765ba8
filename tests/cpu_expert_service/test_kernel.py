"""PyTorch's kernel against a plain loop in float64."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu_expert_service.kernel import Kernel, PyTorchKernel
from fiddler.expert_math import ExpertWeights, LayerWeights
from tests.support.weights import plain

ERROR = {torch.float32: 1e-6, torch.bfloat16: 0.015}
"""Largest distance from the exact result by the dtype of the rows, relative to the experts' outputs.

bfloat16 holds 8 bits, and each of an expert's steps rounds to it; the worst of 400 examples was half of this."""

ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_new": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
}
ACTIVATIONS["swish"] = ACTIVATIONS["silu"]
ACTIVATIONS["gelu_pytorch_tanh"] = ACTIVATIONS["gelu_new"]


@dataclass(frozen=True)
class Problem:
    """A layer and a message for it."""

    experts: Sequence[ExpertWeights]
    activation: str
    hidden: torch.Tensor
    expert_ids: list[list[int]]
    routing_weights: torch.Tensor

    def run(self, kernel: Kernel) -> torch.Tensor:
        compute = kernel.prepare(LayerWeights(tuple(self.experts), self.activation))
        return compute(self.hidden, torch.tensor(self.expert_ids, dtype=torch.int32), self.routing_weights)

    def solve(self) -> tuple[torch.Tensor, float]:
        """The exact result, and the norm of the summands."""
        total = torch.zeros(self.hidden.shape, dtype=torch.float64)
        square = 0.0
        for row, ids in enumerate(self.expert_ids):
            for column, expert in enumerate(ids):
                if expert >= 0:
                    part = self.routing_weights[row, column].double() * self._expert(expert, self.hidden[row].double())
                    total[row] += part
                    square += float(part.square().sum())
        return total, math.sqrt(square)

    def _expert(self, number: int, row: torch.Tensor) -> torch.Tensor:
        expert, activation = self.experts[number], ACTIVATIONS[self.activation]
        up = plain(expert.up).double() @ row
        gate = up if expert.gate is None else plain(expert.gate).double() @ row
        inner = torch.tensor([activation(value) for value in gate.tolist()], dtype=torch.float64)
        return plain(expert.down).double() @ (inner if expert.gate is None else inner * up)


@st.composite
def problems(draw: st.DrawFn, rows_dtype: torch.dtype) -> Problem:
    num_rows, k, num_experts = draw(st.integers(1, 9)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    hidden_size, inner_size = draw(st.sampled_from([(32, 48), (64, 32)]))
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float32, torch.float16]))
    gated = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def matrix(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) / math.sqrt(shape[1])).to(dtype)

    row_ids = st.lists(st.integers(-1, num_experts - 1), min_size=k, max_size=k)
    ids = draw(st.lists(row_ids, min_size=num_rows, max_size=num_rows))
    weights = torch.randn(num_rows, k, generator=generator)
    # these must not be read
    weights[torch.tensor(ids) < 0] = math.nan
    return Problem(
        [
            ExpertWeights(
                matrix(inner_size, hidden_size) if gated else None,
                matrix(inner_size, hidden_size),
                matrix(hidden_size, inner_size),
            )
            for _ in range(num_experts)
        ],
        draw(st.sampled_from(sorted(ACTIVATIONS))),
        torch.randn(num_rows, hidden_size, generator=generator).to(rows_dtype),
        ids,
        weights,
    )


@pytest.fixture(scope="module")
def kernel() -> Iterator[PyTorchKernel]:
    before = torch.get_num_threads()
    yield PyTorchKernel(num_threads=1)
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", ERROR, ids=str)
def test_the_result_is_that_of_a_plain_loop(kernel: PyTorchKernel, dtype: torch.dtype) -> None:
    @settings(deadline=None, max_examples=60)
    @given(problems(dtype))
    def check(problem: Problem) -> None:
        before = problem.hidden.clone()
        output = problem.run(kernel)
        exact, norm = problem.solve()
        assert output.dtype == dtype
        assert float((output.double() - exact).norm()) <= ERROR[dtype] * norm
        idle = [row for row, ids in enumerate(problem.expert_ids) if max(ids) < 0]
        assert torch.equal(output[idle], torch.zeros_like(output[idle]))
        assert torch.equal(problem.hidden, before)

    check()


def test_partial_sums_are_added_in_float32(kernel: PyTorchKernel) -> None:
    """Many small parts on top of a large one: bfloat16 would swallow each of them."""
    size, count = 8, 129
    eye = torch.eye(size, dtype=torch.bfloat16)
    experts = [ExpertWeights(None, eye, eye)] * count
    hidden = torch.ones(1, size, dtype=torch.bfloat16)
    weights = torch.full((count,), 1 / 128)
    weights[0] = 1
    problem = Problem(experts, "relu", hidden, [list(range(count))], weights[None])
    assert torch.equal(problem.run(kernel), torch.full_like(hidden, 2))


def test_a_kernel_takes_its_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        assert PyTorchKernel(1).num_threads == 1
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
