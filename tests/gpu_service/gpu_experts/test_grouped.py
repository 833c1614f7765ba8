"""Resident experts that are computed together give what each of them gives alone, whatever they are stored in."""

from pathlib import Path

import pytest
import torch

from fiddler.checkpoint import Checkpoint
from fiddler.coding import CodedTensor
from fiddler.expert_math import layer_combination, layer_forward, layer_weights
from gpu_service.gpu_experts import grouped
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.gpu_experts.grouped import GroupedExperts
from gpu_service.gpu_experts.uploads import Uploads
from tests.support import checkpoints, coded_layouts
from tests.support.coded import FORMATS
from tests.support.families import tiny
from tests.support.routes import CPU

CODED = (
    *(("separate", name) for name in FORMATS),
    ("fused", "fp8 block"),
    ("interleaved", coded_layouts.GPT_OSS),
)
PLAIN = ("mixtral", "gpt_oss", "nemotron_h")
"""With gate and up in one matrix, with biases, without a gate."""
NUM_ROWS = 5
CUDA = torch.device("cuda", 0)
DEVICES = [(CPU, torch.float32)]
if torch.cuda.is_available():  # `python -m benchmarks.gpu` runs these tests; tests/imitated_cuda has what needs none
    DEVICES += [(CUDA, torch.float32), (CUDA, torch.bfloat16)]
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def _check(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
    """Compares sums with those of one expert after the other on the CPU."""
    layer = next(number for number, each in enumerate(checkpoint.layers) if each.num_experts > 2)
    stored = checkpoint.layers[layer]
    combine, weights = layer_combination(stored.activation), layer_weights(checkpoint, stored)
    chosen = [0, 2, *range(3, stored.num_experts)]  # not all of them, and not all next to each other
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(NUM_ROWS, stored.hidden_size, generator=generator).to(dtype)
    ids = torch.randint(-1, stored.num_experts, (NUM_ROWS, 3), generator=generator, dtype=torch.int32)
    ids[0], ids[1] = -1, torch.tensor([2, 2, 0])  # a row without an expert, and one that chose an expert twice
    routing = torch.rand(NUM_ROWS, 3, generator=generator)
    among = torch.where(torch.isin(ids, torch.tensor(chosen)), ids, -1).to(torch.int32)
    expected = layer_forward(weights, combine, hidden, among, routing).float()
    slots = ExpertSlots(checkpoint, device, len(chosen))
    try:
        slots.load((layer, expert) for expert in chosen)
        held = {expert: slots.holding((layer, expert)) for expert in chosen}
        experts = GroupedExperts(combine, Uploads(device))
        sums = experts.sums(hidden.to(device), held, expert_ids=ids.numpy(), routing_weights=routing.numpy()).cpu()
    finally:
        slots.close()
    assert sums.dtype is torch.float32
    assert (sums - expected).abs().max() < TOLERANCES[dtype] * expected.abs().max()


def _check_all_ways(checkpoint: Checkpoint) -> None:
    """Experts are copied next to each other: all, or as many as a small limit allows; or they stay where they are."""
    own = grouped.group_bytes(layer_weights(checkpoint, checkpoint.layers[-1]).experts[0], torch.float32)
    for limits in ({}, {"MAX_BYTES": 2 * own}, {"MAX_EXPERT_BYTES": own - 1}):
        with pytest.MonkeyPatch.context() as patch:
            for name, limit in limits.items():
                patch.setattr(grouped, name, limit)
            for device, dtype in DEVICES:
                _check(checkpoint, device, dtype)


@pytest.mark.parametrize(("layout", "name"), CODED, ids=[f"{layout} {name}" for layout, name in CODED])
def test_coded_experts(layout: coded_layouts.Layout, name: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(coded_layouts.write(layout, name, tmp_path))
    assert isinstance(layer_weights(checkpoint, checkpoint.layers[0]).experts[0].down, CodedTensor)
    _check_all_ways(checkpoint)


@pytest.mark.parametrize("family", PLAIN)
def test_plain_experts(family: str, tmp_path: Path) -> None:
    _check_all_ways(Checkpoint.open(tiny.write(family, tmp_path)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the CPU has no products of 16 bits with float32 results")
def test_plain_experts_in_bfloat16(tmp_path: Path) -> None:
    _check_all_ways(Checkpoint.open(checkpoints.write("mixtral", tmp_path, dtype=torch.bfloat16)))
