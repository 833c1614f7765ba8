"""Slots hold the weights that they claim to hold, however these were copied."""

import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.errors import FileFormatError
from fiddler.expert_math import ExpertWeights, layer_weights
from gpu_service.gpu_experts.copier import CopyCancelledError
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.gpu_experts.keys import ExpertKey
from gpu_service.gpu_experts.lanes import HostLane, Mark
from tests.support import checkpoints
from tests.support.lanes import SECONDS, GatedLane
from tests.support.tampering import SINGLE_FILE, Tensors, edit_config, edit_tensors

CPU = torch.device("cpu")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CHUNK_BYTES = 6144
CHUNKS = 12
"""Chunks of an expert of the tiny Mixtral: three float32 matrices of 96 x 64."""


def _without_gates(directory: Path) -> None:
    def renamed(tensors: Tensors) -> Tensors:
        for old, new in (("block_sparse_moe", "mixer"), (".w3.", ".up_proj."), (".w2.", ".down_proj.")):
            tensors = {name.replace(old, new): tensor for name, tensor in tensors.items() if ".w1." not in name}
        return tensors

    edit_tensors(directory, renamed)
    edit_config(directory, model_type="nemotron_h", moe_intermediate_size=96, intermediate_size=None)


LAYOUTS: dict[str, Callable[[Path], object]] = {
    "mixtral": lambda path: checkpoints.write("mixtral", path, dtype=torch.bfloat16, shards=3),
    "deepseek_v2, float32": lambda path: checkpoints.write("deepseek_v2", path),
    "olmoe, float16": lambda path: checkpoints.write("olmoe", path, dtype=torch.float16),
    "granitemoe": lambda path: checkpoints.write("granitemoe", path, dtype=torch.bfloat16),
    "fused": lambda path: checkpoints.fuse(checkpoints.write("qwen3_moe", path)),
    "fused, transposed": lambda path: checkpoints.fuse(
        checkpoints.write("qwen3_moe", path, dtype=torch.bfloat16), transposed=True
    ),
    "fused, interleaved": lambda path: checkpoints.fuse(checkpoints.write("qwen3_moe", path), interleaved=True),
    "fused, transposed, interleaved": lambda path: checkpoints.fuse(
        checkpoints.write("qwen3_moe", path, dtype=torch.bfloat16), transposed=True, interleaved=True
    ),
    "without gates": lambda path: _without_gates(checkpoints.write("mixtral", path)),
}


def assert_same(weights: ExpertWeights, stored: ExpertWeights) -> None:
    for part in fields(ExpertWeights):
        copied, original = getattr(weights, part.name), getattr(stored, part.name)
        if original is None:
            assert copied is None
            continue
        assert copied.is_contiguous()
        assert copied.data_ptr() % 256 == 0 or copied.device.type == "cpu"
        assert copied.dtype == original.dtype
        assert torch.equal(copied.cpu(), original)


def poll_until(slots: ExpertSlots, happened: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.001)
        slots.poll()


class Stored:
    """The experts as they are stored."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._layers = [layer_weights(checkpoint, layer) for layer in checkpoint.layers]

    def __getitem__(self, key: ExpertKey) -> ExpertWeights:
        return self._layers[key[0]].experts[key[1]]


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    LAYOUTS[request.param](tmp_path)
    return Checkpoint.open(tmp_path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A Mixtral in float32: 3 layers of 8 experts."""
    return Checkpoint.open(checkpoints.write("mixtral", tmp_path_factory.mktemp("mixtral")))


@pytest.fixture(scope="module")
def stored(checkpoint: Checkpoint) -> Stored:
    return Stored(checkpoint)


@pytest.fixture
def lane() -> GatedLane:
    return GatedLane(CHUNK_BYTES)


@pytest.fixture
def slots(checkpoint: Checkpoint, lane: GatedLane) -> Iterator[ExpertSlots]:
    """Three resident slots, two streaming ones, and copies that advance as far as a test lets them."""
    slots = ExpertSlots(checkpoint, CPU, 3, lane=lane)
    yield slots
    lane.open()
    slots.close()


@pytest.fixture
def loaded(slots: ExpertSlots, lane: GatedLane) -> ExpertSlots:
    """The same slots with experts 0, 1 and 2 of layer 0 resident."""
    lane.let_through(3 * CHUNKS)
    slots.load([(0, 0), (0, 1), (0, 2)])
    return slots


@pytest.mark.parametrize("device", DEVICES)
def test_weights_arrive_bit_for_bit_by_every_route(layout: Checkpoint, device: str) -> None:
    stored, last = Stored(layout), len(layout.layers) - 1
    with torch.inference_mode():  # as the engine's thread is
        slots = ExpertSlots(layout, torch.device(device), 3, lane=HostLane(500) if device == "cpu" else None)
        slots.load([(0, 0), (last, 1)])
        assert_same(slots.holding((0, 0)).weights, stored[0, 0])
        assert_same(slots.holding((last, 1)).weights, stored[last, 1])

        streamed = slots.stream((0, 2))
        assert_same(streamed.wait(), stored[0, 2])
        assert slots.resident(0) == {0}, "it does not stay"
        streamed.release()

        assert slots.swap(None, (last, 3))
        poll_until(slots, lambda: 3 in slots.resident(last))
        assert_same(slots.holding((last, 3)).weights, stored[last, 3])

        assert slots.prefetch((0, 4)) is not None
        hurried = slots.stream((0, 4))
        assert_same(hurried.wait(), stored[0, 4])
        hurried.release()

        lru = slots.stream((0, 5), into=(0, 0))
        assert_same(lru.wait(), stored[0, 5])
        lru.release()
        assert_same(slots.holding((0, 5)).weights, stored[0, 5])

        assert slots.prefetch((last, 6)) is not None
        kept = slots.stream((last, 6), into=(0, 5))
        assert_same(kept.wait(), stored[last, 6])
        kept.release()
        assert_same(slots.holding((last, 6)).weights, stored[last, 6])
        assert_same(slots.holding((last, 1)).weights, stored[last, 1])
        slots.close()


def test_a_slot_is_of_the_largest_expert(layout: Checkpoint) -> None:
    stored = Stored(layout)
    largest = max(
        sum(-(-matrix.nbytes // 256) * 256 for matrix in (expert.gate, expert.up, expert.down) if matrix is not None)
        for layer, experts in enumerate(layout.layers)
        for expert in (stored[layer, number] for number in range(experts.num_experts))
    )
    assert ExpertSlots.slot_bytes(layout) == largest


def test_loading_tells_how_far_it_is(slots: ExpertSlots, lane: GatedLane) -> None:
    lane.open()
    progress: list[tuple[int, int]] = []
    slots.load([(0, 0), (2, 7)], lambda done, total: progress.append((done, total)))
    expert_bytes = 3 * 96 * 64 * 4
    assert progress == [(expert_bytes, 2 * expert_bytes), (2 * expert_bytes, 2 * expert_bytes)]
    assert (slots.resident(0), slots.resident(1), slots.resident(2)) == ({0}, set(), {7})
    slots.load([])
    assert slots.copied_bytes == {"demand": 0, "prefetch": 0, "swap": 2 * expert_bytes}


def test_more_than_fits_cannot_be_loaded(slots: ExpertSlots, lane: GatedLane) -> None:
    lane.open()
    with pytest.raises(ValueError, match=r"\(0, 3\) cannot be loaded: no slot is empty"):
        slots.load([(0, 0), (0, 1), (0, 2), (0, 3)])


def test_nothing_is_resident_before_it_has_landed_and_poll_says_so(
    slots: ExpertSlots, lane: GatedLane, stored: Stored
) -> None:
    assert slots.swap(None, (1, 3))
    lane.step(CHUNKS - 1)
    slots.poll()
    assert slots.resident(1) == set()
    assert list(slots.resident_keys()) == [(1, 3)]
    with pytest.raises(KeyError, match=r"\(1, 3\) is not resident"):
        slots.holding((1, 3))
    lane.step()
    poll_until(slots, lambda: slots.resident(1) == {3})
    assert_same(slots.holding((1, 3)).weights, stored[1, 3])
    assert slots.pending(1) == {}


def test_what_is_pending_is_the_fraction_still_to_do(loaded: ExpertSlots, lane: GatedLane) -> None:
    assert loaded.pending(1) == {}
    assert loaded.swap((0, 0), (1, 5))
    assert loaded.prefetch((1, 6)) is not None
    assert loaded.pending(1) == {5: 1.0, 6: 1.0}
    assert loaded.pending(0) == {}
    lane.wait_at_gate()
    lane.step(CHUNKS)
    lane.wait_at_gate()
    done_first = loaded.pending(1)
    assert sum(1 - left for left in done_first.values()) == pytest.approx(1, abs=1e-5)
    lane.step(CHUNKS // 2)
    lane.wait_at_gate()
    assert sum(loaded.pending(1).values()) == pytest.approx(0.5, abs=1e-5)
    lane.open()
    copy = loaded.stream((1, 6))
    copy.wait()
    assert 6 not in loaded.pending(1)
    copy.release()


def test_a_prefetch_that_is_done_costs_next_to_nothing_but_is_not_resident(slots: ExpertSlots, lane: GatedLane) -> None:
    prefetched = slots.prefetch((1, 6))
    assert prefetched is not None
    lane.step(CHUNKS)
    slots.poll()
    lane.let_through(CHUNKS)
    marker = slots.stream((0, 0))
    marker.wait()  # by then the copier's thread has ended the prefetch
    assert 0 < slots.pending(1)[6] <= 1e-6
    assert slots.resident(1) == set()
    assert slots.stream((1, 6)) is prefetched
    prefetched.wait()
    assert prefetched.seconds is not None
    assert slots.pending(1) == {}


def test_a_victim_leaves_at_once_and_its_successor_stays(loaded: ExpertSlots, lane: GatedLane, stored: Stored) -> None:
    copy = loaded.stream((0, 7), into=(0, 1))
    assert loaded.resident(0) == {0, 2}
    assert list(loaded.resident_keys()) == [(0, 0), (0, 2), (0, 7)]
    lane.open()
    copy.wait()
    assert loaded.resident(0) == {0, 2, 7}
    copy.release()
    assert_same(loaded.holding((0, 7)).weights, stored[0, 7])
    assert loaded.capacity == 3


def test_a_demand_that_was_not_waited_for_is_cancelled_unless_it_stays(loaded: ExpertSlots, lane: GatedLane) -> None:
    passing, staying = loaded.stream((1, 0)), loaded.stream((1, 1), into=(0, 1))
    passing.release()
    staying.release()
    assert loaded.pending(1).keys() == {1}
    assert (1, 1) in loaded.resident_keys()
    lane.open()
    assert loaded.swap((0, 0), (2, 2))
    poll_until(loaded, lambda: loaded.resident(2) == {2})
    assert loaded.resident(1) == {1}
    assert loaded.copied_bytes["demand"] <= 3 * CHUNK_BYTES, "at most the chunk of each that was being copied"


def test_more_demands_than_streaming_slots_begin_as_those_before_are_released(
    slots: ExpertSlots, lane: GatedLane, stored: Stored
) -> None:
    lane.open()
    keys = [(layer, expert) for layer in (0, 1) for expert in range(5)]
    copies = [slots.stream(key) for key in keys]
    for key, copy in zip(keys, copies, strict=True):
        assert_same(copy.wait(), stored[key])
        copy.release()


def test_waiting_for_a_copy_out_of_turn_is_refused_rather_than_endless(slots: ExpertSlots, lane: GatedLane) -> None:
    first, second, third = (slots.stream((0, expert)) for expert in range(3))
    with pytest.raises(RuntimeError, match=r"\(0, 2\) has no slot until those that were streamed before it"):
        third.wait()
    third.release()
    first.release()
    with pytest.raises(RuntimeError, match=r"\(0, 0\) was released"):
        first.wait()
    lane.open()
    second.wait()
    second.release()
    second.release()
    slots.stream((0, 2)).wait()


def test_a_demand_takes_the_slot_of_the_oldest_prefetch(slots: ExpertSlots, lane: GatedLane, stored: Stored) -> None:
    oldest, newest = slots.prefetch((1, 0)), slots.prefetch((1, 1))
    assert oldest is not None
    assert newest is not None
    assert slots.prefetch((1, 2)) is None, "no slot is free"
    demanded = slots.stream((0, 5))
    assert slots.pending(1).keys() == {1}
    second = slots.stream((0, 6))
    assert slots.pending(1) == {}
    lane.open()
    for copy in (demanded, second):
        assert_same(copy.wait(), stored[copy.key])
        copy.release()
    with pytest.raises(RuntimeError, match="had to make room"):
        oldest.wait()
    oldest.release()
    assert slots.prefetch((1, 2)) is not None
    assert slots.prefetch((1, 3)) is not None


def test_a_prefetch_can_be_waited_for_and_given_up(slots: ExpertSlots, lane: GatedLane, stored: Stored) -> None:
    copy, other = slots.prefetch((1, 0)), slots.prefetch((1, 1))
    assert copy is not None
    assert other is not None
    slots.cancel_prefetch((1, 1))
    slots.cancel_prefetch((1, 1))
    slots.cancel_prefetch((2, 2))
    assert slots.pending(1).keys() == {0}
    lane.open()
    assert_same(copy.wait(), stored[1, 0])
    slots.cancel_prefetch((1, 0))
    assert_same(copy.wait(), stored[1, 0])  # it is demanded now
    copy.release()
    assert slots.pending(1) == {}


def test_what_is_on_the_device_is_not_prefetched(loaded: ExpertSlots, lane: GatedLane) -> None:
    assert loaded.prefetch((0, 0)) is None
    assert loaded.swap((0, 0), (1, 1))
    assert loaded.prefetch((1, 1)) is None
    loaded.stream((1, 2))
    assert loaded.prefetch((1, 2)) is None


def test_a_prefetched_expert_can_be_swapped_in_without_another_copy(loaded: ExpertSlots, lane: GatedLane) -> None:
    assert loaded.prefetch((1, 4)) is not None
    assert loaded.swap((0, 2), (1, 4))
    lane.open()
    poll_until(loaded, lambda: loaded.resident(1) == {4})
    assert len(lane.copied) == 4 * CHUNKS
    assert list(loaded.resident_keys()) == [(0, 0), (0, 1), (1, 4)]
    assert all(loaded.prefetch((2, expert)) is not None for expert in (0, 1)), "two slots are free again"


def test_a_swap_under_way_is_hurried_when_a_batch_needs_it(loaded: ExpertSlots, lane: GatedLane) -> None:
    assert loaded.swap((0, 0), (1, 4))
    copy = loaded.stream((1, 4), into=(0, 1))
    assert loaded.resident(0) == {1, 2}, "it has a resident slot, and needs no other's"
    lane.open()
    copy.wait()
    copy.release()
    assert loaded.resident(1) == {4}
    assert loaded.copied_bytes["demand"] >= (CHUNKS - 1) * CHUNK_BYTES


def test_a_resident_expert_may_be_streamed_for_nothing(loaded: ExpertSlots, lane: GatedLane, stored: Stored) -> None:
    copy = loaded.stream((0, 1))
    assert_same(copy.wait(), stored[0, 1])
    assert copy.seconds is None
    assert not loaded.swap((0, 1), (1, 1)), "a batch computes with it"
    copy.release()
    assert loaded.swap((0, 1), (1, 1))


def test_swaps_that_cannot_be(loaded: ExpertSlots) -> None:
    assert not loaded.swap((0, 0), (0, 1)), "it is resident"
    assert not loaded.swap((1, 1), (2, 2)), "the other is not"
    assert not loaded.swap(None, (2, 2)), "no slot is empty"
    copy = loaded.stream((2, 2))
    assert not loaded.swap((0, 0), (2, 2)), "it is streamed"
    copy.release()
    kept = loaded.stream((2, 3), into=(0, 0))
    assert not loaded.swap((2, 3), (2, 2)), "the other is streamed"
    kept.release()
    assert loaded.swap((2, 3), (2, 2)), "one that is under way may leave again"


def test_streams_that_cannot_be(loaded: ExpertSlots) -> None:
    loaded.stream((1, 1), into=(0, 0))
    with pytest.raises(ValueError, match=r"expert \(1, 1\) is streamed already"):
        loaded.stream((1, 1))
    with pytest.raises(ValueError, match=r"expert \(0, 0\) cannot make room for \(1, 2\)"):
        loaded.stream((1, 2), into=(0, 0))
    with pytest.raises(ValueError, match=r"expert \(1, 1\) cannot make room for \(1, 2\)"):
        loaded.stream((1, 2), into=(1, 1))
    loaded.stream((1, 2), into=(0, 1))


def test_what_a_failed_batch_left_is_released(slots: ExpertSlots, lane: GatedLane) -> None:
    for expert in range(4):
        slots.stream((0, expert))
    slots.release_all()
    lane.open()
    for expert in range(4):
        copy = slots.stream((0, expert))
        copy.wait()
        copy.release()


@pytest.mark.parametrize("into", [None, (0, 1)], ids=["passing", "staying"])
def test_a_copy_that_fails_is_told_and_its_slot_used_again(
    loaded: ExpertSlots, lane: GatedLane, stored: Stored, into: ExpertKey | None
) -> None:
    lane.failure = OSError("the disk is gone")
    copy = loaded.stream((1, 1), into)
    lane.open()
    with pytest.raises(OSError, match="the disk is gone"):
        copy.wait()
    loaded.poll()
    with pytest.raises(OSError, match="the disk is gone"):
        copy.wait()  # the batch still has it
    copy.release()
    lane.failure = None
    assert loaded.resident(1) == set()
    assert (1, 1) not in loaded.resident_keys()
    assert loaded.capacity == 3
    again = loaded.stream((1, 1))
    assert_same(again.wait(), stored[1, 1])
    again.release()
    assert loaded.swap(None, (2, 2)) == (into is not None), "the victim's slot is empty"


def test_a_background_copy_that_fails_leaves_an_empty_slot(loaded: ExpertSlots, lane: GatedLane) -> None:
    lane.failure = OSError("the disk is gone")
    assert loaded.swap((0, 1), (1, 1))
    assert loaded.prefetch((1, 2)) is not None
    lane.open()
    poll_until(loaded, lambda: not loaded.pending(1))
    lane.failure = None
    assert list(loaded.resident_keys()) == [(0, 0), (0, 2)]
    loaded.load([(1, 1)])
    assert loaded.resident(1) == {1}
    assert all(loaded.prefetch((2, expert)) is not None for expert in (0, 1))


def test_a_file_that_is_cut_short_fails_a_copy_and_not_the_process(tmp_path: Path) -> None:
    checkpoints.write("mixtral", tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    stored = Stored(checkpoint)
    keys = [(layer, expert) for layer in range(3) for expert in range(8)]
    ends = {
        key: max(view.span_bytes[1] for view in (expert.gate, expert.up, expert.down) if view is not None)
        for key in keys
        for expert in [checkpoint.layers[key[0]].experts[key[1]]]
    }
    first, last = min(ends, key=ends.__getitem__), max(ends, key=ends.__getitem__)
    slots = ExpertSlots(checkpoint, CPU, 1)
    os.truncate(tmp_path / SINGLE_FILE, ends[first])
    copy = slots.stream(last)
    with pytest.raises(FileFormatError, match=rf"{SINGLE_FILE} has been cut short to {ends[first]} bytes; the tensor"):
        copy.wait()
    copy.release()
    whole = slots.stream(first)
    assert_same(whole.wait(), stored[first])
    slots.close()


def test_shrinking_gives_up_the_empty_then_the_least_valuable_then_the_latest(
    slots: ExpertSlots, lane: GatedLane
) -> None:
    lane.open()
    slots.load([(0, 0), (0, 1)])
    assert slots.shrink()
    assert slots.capacity == 2
    assert slots.resident(0) == {0, 1}
    assert slots.shrink(1)
    assert slots.resident(0) == {0}
    assert slots.capacity == 1
    assert slots.shrink(5)
    assert slots.capacity == 0
    assert list(slots.resident_keys()) == []
    assert not slots.shrink()
    slots.stream((0, 3)).wait()


def test_shrinking_gives_up_those_that_it_is_told(loaded: ExpertSlots, lane: GatedLane) -> None:
    assert loaded.shrink(1, least_valuable=[(2, 2), (0, 1), (0, 0)])
    assert loaded.resident(0) == {0, 2}
    assert loaded.capacity == 2


def test_shrinking_leaves_alone_what_a_batch_uses_and_gives_up_what_is_under_way(
    loaded: ExpertSlots, lane: GatedLane, stored: Stored
) -> None:
    copy = loaded.stream((1, 1), into=(0, 2))
    assert loaded.swap((0, 1), (1, 2))
    lane.open()
    assert loaded.shrink(3)
    assert loaded.capacity == 1
    assert loaded.pending(1).keys() <= {1}
    assert_same(copy.wait(), stored[1, 1])
    copy.release()
    assert loaded.resident(1) == {1}


def test_memory_is_given_back_when_nothing_writes_to_it_any_more(
    loaded: ExpertSlots, lane: GatedLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(lane, "synchronize", lambda: calls.append("synchronize"))
    empty = loaded._table.empty
    monkeypatch.setattr(lane, "give_back", lambda: calls.append(f"give back, {len(empty)} left"))
    assert loaded.swap((0, 1), (1, 2))
    lane.wait_at_gate()
    shrinking = threading.Thread(target=loaded.shrink, args=(3,))
    shrinking.start()
    shrinking.join(0.05)
    assert calls == [], "a chunk is still being copied"
    lane.step()
    shrinking.join(SECONDS)
    assert calls == ["synchronize", "give back, 0 left"]


def test_memory_that_is_given_back_is_free(slots: ExpertSlots, lane: GatedLane) -> None:
    lane.open()
    slots.load([(0, 0), (0, 1), (0, 2)])
    held: list[weakref.ref[object]] = [weakref.ref(holding.slot) for holding in slots._table.kept.values()]
    held += [weakref.ref(holding.weights.down) for holding in slots._table.kept.values()]
    slots.shrink(3)
    until = time.monotonic() + SECONDS
    while any(reference() is not None for reference in held) and time.monotonic() < until:
        time.sleep(0.001)  # the copier's thread drops the last job when it goes to sleep
    assert [reference() for reference in held] == [None] * 6


def test_a_transfer_is_timed_without_a_trace(checkpoint: Checkpoint, stored: Stored) -> None:
    slots = ExpertSlots(checkpoint, CPU, 1)
    assert 0 < slots.time_transfer() < 60
    assert slots.pending(0) == {}
    assert all(slots.prefetch((0, expert)) is not None for expert in (0, 1))
    slots.close()
    none = ExpertSlots(checkpoint, CPU, 1, num_streaming=0)
    assert none.time_transfer() == math.inf
    none.close()


def test_closing_gives_up_what_is_under_way(checkpoint: Checkpoint) -> None:
    lane = GatedLane(CHUNK_BYTES)
    slots = ExpertSlots(checkpoint, CPU, 1, lane=lane)
    copy = slots.stream((0, 0))
    lane.let_through()
    slots.close()
    with pytest.raises(CopyCancelledError):
        copy.wait()


def test_small_copies_are_timed_several_in_a_row(checkpoint: Checkpoint) -> None:
    """The copier counts a copy as ended before its last chunk has landed, and so must what it is compared with."""
    copies_before_a_wait: list[int] = []

    class Lane(HostLane):
        num_ended = 0

        def end(self, mark: Mark = None) -> Mark:
            self.num_ended += 1
            return None

        def synchronize(self) -> None:
            copies_before_a_wait.append(self.num_ended)
            self.num_ended = 0

    slots = ExpertSlots(checkpoint, torch.device("cpu"), 0, lane=Lane(2**16))
    assert slots.time_transfer() > 0
    slots.close()
    assert copies_before_a_wait[0] == 4
