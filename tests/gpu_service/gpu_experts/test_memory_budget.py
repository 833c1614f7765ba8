"""How much memory resident experts may take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_service.errors import FlagError
from gpu_service.gpu_experts.memory_budget import (
    RESERVE_BYTES,
    Budget,
    DeviceMemory,
    SlotNeeds,
    budget_bytes,
    parse_budget,
    slots_for,
)

GIB, MIB = 2**30, 2**20
NEEDS = SlotNeeds(slot_bytes=352 * MIB, num_streaming=2)
MEMORY = DeviceMemory(total_bytes=24 * GIB, free_bytes=20 * GIB, workspace_bytes=GIB)
ROOM = 19 * GIB - RESERVE_BYTES - 704 * MIB


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("auto", Budget()),
        ("0", Budget(gib=0)),
        ("8", Budget(gib=8)),
        ("8.5", Budget(gib=8.5)),
        (" 8.5 ", Budget(gib=8.5)),
        ("30%", Budget(percent=30)),
        ("12.5%", Budget(percent=12.5)),
        ("100%", Budget(percent=100)),
    ],
)
def test_what_a_budget_may_be(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    "text", ["", "-1", "nan", "inf", "1e3", "8GB", "8,5", "%", "30%%", "Auto", "0x8", "1_0", "٣", "9" * 400]
)
def test_what_it_may_not_be(text: str) -> None:
    with pytest.raises(ValueError, match=r"neither auto, nor GiB such as 8\.5, nor a share"):
        parse_budget(text)


def test_a_share_of_more_than_all() -> None:
    with pytest.raises(ValueError, match="'101%' is more than the device's memory"):
        parse_budget("101%")


def test_auto_leaves_room_for_all_else() -> None:
    assert budget_bytes(Budget(), MEMORY, NEEDS) == ROOM
    full = DeviceMemory(total_bytes=24 * GIB, free_bytes=GIB, workspace_bytes=GIB)
    assert budget_bytes(Budget(), full, NEEDS) == 0


def test_auto_takes_nothing_of_the_memory_in_which_the_experts_lie_already() -> None:
    host = DeviceMemory(24 * GIB, 20 * GIB, GIB, is_host=True)
    assert budget_bytes(Budget(), host, NEEDS) == 0
    assert budget_bytes(Budget(gib=4), host, NEEDS) == 4 * GIB


def test_a_share_is_of_the_whole_device() -> None:
    assert budget_bytes(Budget(percent=50), MEMORY, NEEDS) == 12 * GIB
    assert budget_bytes(Budget(percent=0), MEMORY, NEEDS) == 0


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(gib=25), r"--gpu-expert-memory 25: the device has 24\.00 GiB$"),
        (
            Budget(gib=19),
            r"--gpu-expert-memory 19: asks for 19\.00 GiB, and 17\.81 GiB of the device's 24\.00 GiB are left",
        ),
        (Budget(percent=90), r"--gpu-expert-memory 90%: asks for 21\.60 GiB, and 17\.81 GiB"),
        (Budget(gib=0.3), r"--gpu-expert-memory 0\.3: one expert takes 0\.34 GiB; ask for more, or for 0"),
        (Budget(percent=0.01), r"--gpu-expert-memory 0\.01%: one expert takes 0\.34 GiB"),
    ],
    ids=["the device", "what is left", "a share of more than is left", "one expert", "a share of less than an expert"],
)
def test_a_budget_that_cannot_be(budget: Budget, message: str) -> None:
    with pytest.raises(FlagError, match=message):
        budget_bytes(budget, MEMORY, NEEDS)


@pytest.mark.parametrize(
    ("slot_bytes", "allocated"),
    [
        (352 * MIB, 352 * MIB),
        (int(16.5 * MIB), 18 * MIB),
        (10 * MIB, 10 * MIB),
        (9 * MIB, 10 * MIB),
        (7 * MIB, 10 * MIB),
        (5 * MIB, 5 * MIB),
        (300_000, 300_032),
    ],
)
def test_a_slot_takes_what_the_allocator_makes_of_it(slot_bytes: int, allocated: int) -> None:
    assert SlotNeeds(slot_bytes, 2).allocated_bytes == allocated


def test_slots_for_a_budget() -> None:
    assert slots_for(0, NEEDS, 256) == 0
    assert slots_for(704 * MIB - 1, NEEDS, 256) == 1
    assert slots_for(704 * MIB, NEEDS, 256) == 2
    assert slots_for(10**15, NEEDS, 256) == 256
    assert slots_for(100 * MIB, SlotNeeds(7 * MIB, 2), 256) == 10


@given(
    st.integers(1, 80 * GIB), st.integers(0, 80 * GIB), st.integers(0, 4 * GIB), st.integers(1, GIB), st.integers(0, 8)
)
def test_auto_fits(total: int, free: int, workspace: int, slot: int, num_streaming: int) -> None:
    memory = DeviceMemory(max(total, free), free, workspace)
    needs = SlotNeeds(slot, num_streaming)
    slots = slots_for(budget_bytes(Budget(), memory, needs), needs, 10_000)
    taken = (slots + num_streaming) * needs.allocated_bytes + workspace + RESERVE_BYTES
    assert needs.allocated_bytes >= slot
    assert slots == 0 or taken <= free
    assert slots == 10_000 or taken + needs.allocated_bytes > free
