"""How much of the experts is in memory, of weights with everything that an expert may have."""

import mmap
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from cpu_expert_service.residency import Residency
from fiddler.checkpoint import Checkpoint
from fiddler.expert_math import ExpertWeights, LayerWeights, layer_weights
from tests.support import published
from tests.support.families import tiny


@pytest.mark.parametrize(
    "write",
    [partial(tiny.write, "mixtral"), partial(published.write, "openmoe"), partial(tiny.write, "gpt_oss")],
    ids=["plain", "with a factor", "with biases"],
)
def test_all_that_is_in_memory_is_counted(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    checkpoint = Checkpoint.open(write(tmp_path / "model"))
    checkpoint.prefault()
    residency = Residency([layer_weights(checkpoint, layer) for layer in checkpoint.layers])
    assert residency.resident_bytes() == checkpoint.expert_bytes


def test_what_was_never_touched_is_not_in_memory() -> None:
    num_bytes = 64 * mmap.PAGESIZE
    memory = torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.float32)
    gate, up, down, factor = memory.view(4, 16, -1)
    factor.fill_(1)
    residency = Residency([LayerWeights((ExpertWeights(gate, up, down, factor=factor),), "silu")])
    assert residency.total_bytes == num_bytes
    assert residency.resident_bytes() == num_bytes / 4


def test_matrices_that_share_rows_of_memory_are_sampled_from_end_to_end() -> None:
    num_bytes = 64 * mmap.PAGESIZE
    memory = torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.float32).view(64, -1)
    memory[32:].fill_(1)
    gate, up, down = memory.chunk(3, dim=1)  # each row of memory holds a part of each matrix
    residency = Residency([LayerWeights((ExpertWeights(gate, up, down),), "silu")])
    assert residency.resident_bytes() == pytest.approx(num_bytes / 2, rel=0.01)
