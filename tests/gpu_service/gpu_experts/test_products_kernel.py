"""The kernel that multiplies experts where they lie: interpreted on the CPU, and compiled for GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fiddler.checkpoint import Checkpoint
from fiddler.coding import CodedTensor, dequantize
from fiddler.expert_math import ExpertWeights, layer_weights
from gpu_service.gpu_experts import in_place
from gpu_service.gpu_experts.projections import GATE_UP, facts_of
from tests.support import coded_layouts
from tests.support.coded import FORMATS

pytest.importorskip("triton", reason="Triton is not installed: there is none for this platform")
IS_ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if IS_ON_GPU else "cpu")
NUM_ROWS, HIDDEN, INTERMEDIATE = 3, 70, 45
"""No multiples of a tile's sides."""


def _expert(generator: torch.Generator, dtype: torch.dtype, *, has_biases: bool) -> ExpertWeights:
    def drawn(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(DEVICE, dtype)

    both = drawn(2 * INTERMEDIATE, HIDDEN)
    biases = (drawn(INTERMEDIATE), drawn(INTERMEDIATE), drawn(HIDDEN)) if has_biases else (None, None, None)
    gate, up = both.chunk(2)
    return ExpertWeights(gate, up, drawn(HIDDEN, INTERMEDIATE), *biases)


def _check(experts: list[ExpertWeights], name: str, rows: torch.Tensor, *, is_last: bool) -> None:
    """Compares a projection with that of one expert after the other in float64."""
    one = experts[0]
    facts = torch.stack([torch.from_numpy(facts_of(each)[name]) for each in experts]).to(DEVICE)
    actual = in_place.products(rows, facts, one, name, is_last=is_last)
    assert actual.dtype is (torch.float32 if is_last else rows.dtype)
    for number, expert in enumerate(experts):
        own = rows[number if len(rows) > 1 else 0].double()
        matrix = torch.cat([expert.gate, expert.up]) if name == GATE_UP else getattr(expert, name)  # type: ignore[list-item]
        if isinstance(matrix, CodedTensor):
            matrix = dequantize(matrix, rows.dtype)
        expected = own @ matrix.double().T
        if name != GATE_UP and getattr(expert, f"{name}_bias") is not None:
            expected += getattr(expert, f"{name}_bias").double()
        tolerance = 1e-5 if actual.dtype is torch.float32 else 1e-2
        assert (actual[number] - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("has_biases", [False, True], ids=["no biases", "biases"])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_experts(dtype: torch.dtype, weights: torch.dtype, has_biases: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    experts = [_expert(generator, weights, has_biases=has_biases) for _ in range(3)]
    rows = torch.randn(1, NUM_ROWS, HIDDEN, generator=generator).to(DEVICE, dtype)
    for name in ("gate", "up") if has_biases else ("up", GATE_UP):
        _check(experts, name, rows, is_last=False)
    own_rows = torch.randn(3, NUM_ROWS, INTERMEDIATE, generator=generator).to(DEVICE, dtype)
    _check(experts, "down", own_rows, is_last=True)


CODED = (
    *(("separate", name) for name in FORMATS),
    ("fused", "fp8 block"),
    ("interleaved", coded_layouts.GPT_OSS),
)


@pytest.mark.parametrize(("layout", "name"), CODED, ids=[f"{layout} {name}" for layout, name in CODED])
def test_coded_experts(layout: coded_layouts.Layout, name: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(coded_layouts.write(layout, name, tmp_path))
    stored = layer_weights(checkpoint, checkpoint.layers[0]).experts[:2]
    experts = [
        each.with_tensors({part: tensor.contiguous().to(DEVICE) for part, tensor in each.tensors()}) for each in stored
    ]
    assert isinstance(experts[0].down, CodedTensor)
    generator = torch.Generator().manual_seed(2)
    for projection in ("gate", "up", "down"):
        matrix = getattr(experts[0], projection)
        rows = torch.randn(2, NUM_ROWS, matrix.shape[1], generator=generator).to(DEVICE)
        _check(experts, projection, rows, is_last=True)


def test_one_row_sixteen_and_more() -> None:
    generator = torch.Generator().manual_seed(3)
    experts = [_expert(generator, torch.float32, has_biases=False) for _ in range(2)]
    for num_rows in (1, 16, 17):
        rows = torch.randn(1, num_rows, HIDDEN, generator=generator).to(DEVICE)
        _check(experts, GATE_UP, rows, is_last=True)


@pytest.mark.skipif(IS_ON_GPU, reason="the tests above compile it for the GPU that is here")
def test_it_compiles_for_gpus(tmp_path: Path) -> None:
    """In a process of its own, where kernels are not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.support.compiled_products"]
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    subprocess.run(command, env=environment, check=True, timeout=280)
