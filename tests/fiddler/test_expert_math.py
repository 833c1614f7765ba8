"""What both services compute experts with, compared with transformers and plain loops."""

from collections import defaultdict
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers.activations import ACT2FN

from fiddler.checkpoint import Checkpoint, Expert
from fiddler.expert_math import (
    CLAMPED,
    ExpertWeights,
    Matrix,
    UnknownActivationError,
    activation_function,
    assign,
    combination,
    expert_forward,
    layer_weights,
)
from tests.support import checkpoints
from tests.support.families import tiny
from tests.support.weights import plain

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2", "silu", "swish")


@settings(deadline=None)
@given(st.integers(1, 4).flatmap(lambda k: st.lists(st.lists(st.integers(-1, 9), min_size=k, max_size=k), min_size=1)))
def test_rows_are_grouped_by_expert(ids: list[list[int]]) -> None:
    expert_ids = torch.tensor(ids, dtype=torch.int32)
    weights = torch.arange(expert_ids.numel(), dtype=torch.float32).view(expert_ids.shape)
    expected = defaultdict(list)
    for row, experts in enumerate(ids):
        for column, expert in enumerate(experts):
            if expert >= 0:
                expected[expert].append((row, float(weights[row, column])))

    assignments = assign(expert_ids, weights)
    assert list(assignments.experts) == sorted(expected)
    assert assignments.starts[0] == 0
    assert assignments.starts[-1] == len(assignments.rows) == len(assignments.weights)
    assert assignments.rows.dtype == torch.int64
    assert assignments.weights.dtype == torch.float32
    pairs = list(zip(assignments.rows.tolist(), assignments.weights.tolist(), strict=True))
    bounds = zip(assignments.starts, assignments.starts[1:], strict=False)
    groups = [sorted(pairs[begin:end]) for begin, end in bounds]
    assert dict(zip(assignments.experts, groups, strict=True)) == expected


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_what_transformers_calls_by_that_name(name: str) -> None:
    values = torch.linspace(-6, 6, 1001)
    torch.testing.assert_close(activation_function(name)(values), ACT2FN[name](values))


def test_an_unknown_activation_is_refused_and_all_others_are_tested_here() -> None:
    with pytest.raises(UnknownActivationError, match="'softcapped_silu' is not supported; known: ") as caught:
        combination("softcapped_silu")
    assert str(caught.value).partition("known: ")[2].split(", ") == sorted([*ACTIVATIONS, *CLAMPED])


def _random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _expert(dtype: torch.dtype, *, gated: bool = True, biases: bool = False) -> ExpertWeights:
    """Of 6 hidden and 4 intermediate features."""
    return ExpertWeights(
        gate=_random(4, 6, dtype=dtype, seed=1) if gated else None,
        up=_random(4, 6, dtype=dtype, seed=2),
        down=_random(6, 4, dtype=dtype, seed=3),
        gate_bias=_random(4, dtype=dtype, seed=4) if biases else None,
        up_bias=_random(4, dtype=dtype, seed=5) if biases else None,
        down_bias=_random(6, dtype=dtype, seed=6) if biases else None,
    )


def test_an_expert_without_a_gate_activates_up() -> None:
    expert, rows = _expert(torch.float32, gated=False), _random(3, 6)
    output = expert_forward(expert, combination("relu"), rows)
    torch.testing.assert_close(output, (rows @ plain(expert.up).T).relu() @ plain(expert.down).T)


def test_biases_and_the_clamped_swiglu_of_gpt_oss() -> None:
    expert, rows = _expert(torch.float32, biases=True), _random(3, 6) * 4
    assert expert.gate_bias is not None
    assert expert.up_bias is not None
    assert expert.down_bias is not None
    gate = (rows @ plain(expert.gate).T + expert.gate_bias).clamp(max=2.0)
    up = (rows @ plain(expert.up).T + expert.up_bias).clamp(-2.0, 2.0)
    inner = (up + 1) * gate / (1 + torch.exp(-1.5 * gate))
    expected = inner @ plain(expert.down).T + expert.down_bias
    assert float((rows @ plain(expert.gate).T + expert.gate_bias).max()) > 2.0, "the clamp has something to do"
    combine = combination("clamped_swiglu", alpha=1.5, limit=2.0)
    torch.testing.assert_close(expert_forward(expert, combine, rows), expected)


def test_the_clamped_silu_of_deepseek_v4() -> None:
    expert, rows = _expert(torch.float32), _random(3, 6) * 4
    gate, up = rows @ plain(expert.gate).T, rows @ plain(expert.up).T
    assert float(gate.max()) > 2.0, "the clamp has something to do"
    assert float(up.abs().max()) > 2.0, "so has the other"
    gate, up = gate.clamp(max=2.0), up.clamp(-2.0, 2.0)
    expected = (gate / (1 + torch.exp(-gate)) * up) @ plain(expert.down).T
    torch.testing.assert_close(expert_forward(expert, combination("clamped_silu", limit=2.0), rows), expected)


@pytest.mark.parametrize("biases", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16], ids=str)
def test_rows_and_weights_of_different_dtypes_meet_in_float32(stored: torch.dtype, biases: bool) -> None:
    expert, rows = _expert(stored, biases=biases), _random(3, 6)

    def linear(rows: torch.Tensor, weight: Matrix | None, bias: torch.Tensor | None) -> torch.Tensor:
        return functional.linear(rows, plain(weight).float(), None if bias is None else bias.float())

    inner = functional.silu(linear(rows, expert.gate, expert.gate_bias)) * linear(rows, expert.up, expert.up_bias)
    output = expert_forward(expert, combination("silu"), rows)
    assert output.dtype == torch.float32
    assert torch.equal(output, linear(inner, expert.down, expert.down_bias))


def test_the_weights_of_a_layer_are_views_of_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(checkpoints.write("olmoe", tmp_path))
    weights = layer_weights(checkpoint, checkpoint.layers[1])
    assert (len(weights.experts), weights.activation) == (7, "silu")
    for stored, expert in zip(checkpoint.layers[1].experts, weights.experts, strict=True):
        assert stored.gate is not None
        assert expert.gate is not None
        for view, matrix in ((stored.gate, expert.gate), (stored.up, expert.up), (stored.down, expert.down)):
            assert plain(matrix).data_ptr() == checkpoint.tensor(view).data_ptr()
            assert matrix.shape == view.shape
    assert expert.up_bias is None


def test_an_expert_is_made_of_the_tensors_that_it_has() -> None:
    plain, whole = _expert(torch.float32, gated=False), _expert(torch.bfloat16, biases=True)
    assert [name for name, _ in plain.tensors()] == ["up", "down"]
    assert plain.nbytes == 2 * 4 * 6 * 4
    whole = replace(whole, factor=_random(4, 6, dtype=torch.bfloat16))
    assert [name for name, _ in whole.tensors()] == [field.name for field in fields(ExpertWeights)]
    assert [name for name, _ in whole.matrices()] == ["gate", "up", "down", "factor"]
    assert whole.nbytes == (4 * 4 * 6 + 4 + 4 + 6) * 2
    assert all(tensor is getattr(whole, name) for name, tensor in whole.tensors())


def test_an_expert_has_as_many_bytes_in_its_file_as_in_memory(tmp_path: Path) -> None:
    assert {field.name for field in fields(Expert)} == {field.name for field in fields(ExpertWeights)}
    checkpoint = Checkpoint.open(tiny.write("gpt_oss", tmp_path))
    stored, loaded = checkpoint.layers[0].experts[0], layer_weights(checkpoint, checkpoint.layers[0]).experts[0]
    assert loaded.gate_bias is not None
    assert stored.num_bytes == loaded.nbytes == sum(tensor.nbytes for _, tensor in loaded.tensors())
