"""Coded experts in slots: their planes are copied as they are stored, and decode to the same matrices there."""

import threading
from pathlib import Path

import pytest
import torch

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.errors import FileFormatError
from fiddler.coding import CodedTensor, dequantize
from fiddler.expert_math import ExpertWeights, layer_weights
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.gpu_experts.lanes import HostLane
from gpu_service.gpu_experts.slots import Slot, slot_bytes
from gpu_service.gpu_experts.stored import StoredExperts
from tests.support.coded_layouts import GPT_OSS, write

CPU = torch.device("cpu")
FORMATS = ("fp8 small blocks", "fp8 channel", "int4 group 32 asymmetric", "nvfp4", "mxfp4")


CASES = (*(("separate", name) for name in FORMATS), ("fused", "fp8 block"), ("interleaved", GPT_OSS))


@pytest.fixture(params=CASES, ids=": ".join)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    return Checkpoint.open(write(request.param[0], request.param[1], tmp_path))


def test_a_slot_holds_the_planes_and_no_decoded_matrix(checkpoint: Checkpoint) -> None:
    expert = layer_weights(checkpoint, checkpoint.layers[0]).experts[0]
    num_bytes = slot_bytes(checkpoint)
    tensors = list(expert.tensors())
    assert expert.nbytes <= num_bytes < expert.nbytes + 256 * len(tensors)
    slot = Slot(num_bytes, CPU)
    placed = dict(slot.place(expert).tensors())
    begin, end = slot.memory.data_ptr(), slot.memory.data_ptr() + num_bytes
    assert list(placed) == [name for name, _ in tensors]
    for name, tensor in tensors:
        target = placed[name]
        assert (target.shape, target.dtype) == (tensor.shape, tensor.dtype)
        assert target.is_contiguous()
        assert begin <= target.data_ptr() <= end - target.nbytes


@pytest.mark.parametrize("chunk_bytes", [40, 2**20])
def test_what_is_copied_decodes_to_the_same_matrices(checkpoint: Checkpoint, chunk_bytes: int) -> None:
    num_experts = [layer.num_experts for layer in checkpoint.layers]
    slots = ExpertSlots(checkpoint, CPU, sum(num_experts), lane=HostLane(chunk_bytes))
    try:
        slots.load((layer, expert) for layer, count in enumerate(num_experts) for expert in range(count))
        for layer, stored in enumerate(checkpoint.layers):
            for number, expert in enumerate(layer_weights(checkpoint, stored).experts):
                weights = slots.holding((layer, number)).weights
                for matrix, due in ((weights.gate, expert.gate), (weights.up, expert.up), (weights.down, expert.down)):
                    assert isinstance(matrix, CodedTensor)
                    assert isinstance(due, CodedTensor)
                    assert torch.equal(dequantize(matrix), dequantize(due))
                    assert matrix.codes.data_ptr() != due.codes.data_ptr()
        assert slots.copied_bytes["swap"] == sum(
            expert.nbytes for layer in checkpoint.layers for expert in layer_weights(checkpoint, layer).experts
        )
    finally:
        slots.close()


def test_an_expert_whose_scales_are_cut_off_is_not_read(tmp_path: Path) -> None:
    directory = write("separate", "mxfp4", tmp_path)
    checkpoint = Checkpoint.open(directory)
    stored = StoredExperts(checkpoint)
    keys = [(layer, number) for layer in range(len(stored.num_experts)) for number in range(stored.num_experts[layer])]

    def scales_end(key: tuple[int, int]) -> int:
        views = checkpoint.layers[key[0]].experts[key[1]].views.values()
        return max(view.planes[1].span_bytes[1] for view in views)

    last = max(keys, key=scales_end)
    (file,) = checkpoint.files
    with file.open("r+b") as handle:
        handle.truncate(scales_end(last) - 1)
    with pytest.raises(FileFormatError, match="has been cut short"):
        stored.check(last)
    stored.check(min(keys, key=scales_end))
    stored.close()


def test_repacked_experts_are_read_in_the_thread_that_copies_once_the_files_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write("separate", "gptq asymmetric v2", tmp_path)
    checkpoint = Checkpoint.open(directory)
    readers: list[str] = []
    read = StoredExperts.__getitem__

    def note(stored: StoredExperts, key: tuple[int, int]) -> ExpertWeights:
        readers.append(threading.current_thread().name)
        return read(stored, key)

    monkeypatch.setattr(StoredExperts, "__getitem__", note)
    slots = ExpertSlots(checkpoint, CPU, 4)
    slots.load([(0, 0), (0, 1), (1, 2)])
    assert readers.count("copier") == 3
    assert len(readers) == 4, "one more for the form, which all have"
    due = layer_weights(checkpoint, checkpoint.layers[1]).experts[2]
    for (name, tensor), (_, copy) in zip(due.tensors(), slots.holding((1, 2)).weights.tensors(), strict=True):
        assert torch.equal(tensor, copy), name
    (file,) = checkpoint.files
    with file.open("r+b") as handle:
        handle.truncate(100)
    streamed = slots.stream((1, 3))
    with pytest.raises(FileFormatError, match="has been cut short"):
        streamed.wait()
    streamed.release()
    assert len(readers) == 4
    slots.close()
