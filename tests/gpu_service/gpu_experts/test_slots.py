"""How an expert's tensors are laid out in a slot."""

from dataclasses import fields

import torch

from fiddler.expert_math import ExpertWeights
from gpu_service.gpu_experts.slots import Slot
from tests.support.weights import plain


def test_tensors_of_odd_sizes_lie_apart_and_aligned() -> None:
    """Including biases, which some checkpoints have."""
    stored = ExpertWeights(
        gate=torch.randn(5, 7).to(torch.bfloat16),
        up=torch.randn(7, 5).to(torch.bfloat16).T,
        down=torch.randn(7, 5).to(torch.bfloat16),
        up_bias=torch.randn(5),
        down_bias=torch.randn(7),
    )
    slot = Slot(5 * 256, torch.device("cpu"))
    placed = slot.place(stored)
    begin = slot.memory.data_ptr()
    assert [tensor.data_ptr() - begin for _, tensor in placed.tensors()] == [0, 256, 512, 768, 1024]
    for _, tensor in placed.tensors():
        assert tensor.is_contiguous()
    for name, tensor in stored.tensors():
        getattr(placed, name).copy_(tensor)
    for field in fields(stored):
        original, copy = getattr(stored, field.name), getattr(placed, field.name)
        assert (original is None and copy is None) or torch.equal(original, copy)


def test_a_slot_is_written_again_and_again() -> None:
    slot = Slot(2 * 256, torch.device("cpu"))
    first = slot.place(ExpertWeights(None, torch.zeros(2, 3), torch.zeros(3, 2)))
    second = slot.place(ExpertWeights(None, torch.zeros(4, 4), torch.zeros(4, 4)))
    plain(second.up).fill_(1)
    assert plain(first.up).data_ptr() == plain(second.up).data_ptr()
    assert float(plain(first.up).sum()) == 6
