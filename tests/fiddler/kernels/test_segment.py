"""Both ends of a segment in one process, over one file's memory that is mapped twice."""

import ctypes
import mmap
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu_expert_service.native_kernel import NativeKernel, NativeLayer
from fiddler.expert_math import ExpertWeights, LayerWeights
from fiddler.kernels.cpus import read_topology
from fiddler.kernels.native import NativeError, NativeUnavailableError, Pool, available_tiers
from fiddler.kernels.segments.caller import Answer, CallerEnd
from fiddler.kernels.segments.layout import NONCE_BYTES, Event, Outcome, Record, Shape
from fiddler.kernels.segments.service import Message, Native, ServiceEnd
from fiddler.transport import shared_memory

HIDDEN, INTERMEDIATE, NUM_EXPERTS = 64, 32, 4
SHAPE = Shape(3, 8192, 4096)
NONCE = b"n" * NONCE_BYTES
MAX_ROWS, MAX_K = 12, 4
SECONDS = 30.0
HEADERS = SHAPE.num_bytes - sum(SHAPE[1:]) * SHAPE.num_slots


def _layer(seed: int) -> LayerWeights:
    random_numbers = torch.Generator().manual_seed(seed)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random_numbers) / 8

    experts = tuple(
        ExpertWeights(
            gate=matrix(INTERMEDIATE, HIDDEN), up=matrix(INTERMEDIATE, HIDDEN), down=matrix(HIDDEN, INTERMEDIATE)
        )
        for _ in range(NUM_EXPERTS)
    )
    return LayerWeights(experts, "silu")


@pytest.fixture(scope="module")
def kernel() -> Iterator[NativeKernel]:
    try:
        kernel = NativeKernel(Pool([min(read_topology().nodes)]), available_tiers()[-1])
    except NativeUnavailableError as error:
        pytest.skip(str(error))
    yield kernel
    kernel.close()


@pytest.fixture(scope="module")
def layers(kernel: NativeKernel) -> list[NativeLayer]:
    return [kernel.prepare(_layer(seed)) for seed in range(2)]


class Ends:
    """A segment with a thread that serves it, and keeps what the library hands over until it is answered."""

    def __init__(
        self,
        directory: Path,
        kernel: NativeKernel,
        layers: list[NativeLayer],
        most: tuple[int | None, ...] = (None, None),
    ) -> None:
        self.path, memory = shared_memory.create(directory, SHAPE.num_bytes)
        self.service = ServiceEnd(memory, SHAPE, NONCE, spin_microseconds=0)
        native = Native(kernel.pool, kernel.tier, tuple(layer.description for layer in layers), most)
        self.service.compute(
            native, dtype=torch.float32, max_rows=MAX_ROWS, max_experts_per_row=MAX_K, few_rows=2, most_rows_to_count=8
        )
        self.memory = shared_memory.attach(self.path, SHAPE.num_bytes)
        self.caller = CallerEnd(self.memory, SHAPE, NONCE, spin_microseconds=0)
        self.handed: list[Message] = []
        self.has_handed = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "Ends":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.service.close()
        self.caller.close()
        self._thread.join(SECONDS)
        self.path.unlink()
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        while (found := self.service.serve()) is not Event.CLOSED:
            if isinstance(found, Message):
                self.handed.append(found)
                self.has_handed.set()

    def handed_over(self) -> Message:
        assert self.has_handed.wait(SECONDS)
        return self.handed[-1]


@pytest.fixture
def ends(tmp_path: Path, kernel: NativeKernel, layers: list[NativeLayer]) -> Iterator[Ends]:
    with Ends(tmp_path, kernel, layers) as ends:
        yield ends


def _tensors(rows: int, k: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, HIDDEN, generator=generator)
    ids = torch.randint(-1, NUM_EXPERTS, (rows, k), generator=generator, dtype=torch.int32)
    return hidden, ids, torch.rand(rows, k, generator=generator)


def _post(
    ends: Ends,
    sequence: int,
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    *,
    layer: int = 0,
    remaining: float | None = None,
) -> int | None:
    hidden, ids, weights = tensors
    return ends.caller.post(
        sequence,
        layer,
        hidden=hidden,
        expert_ids=ids,
        routing_weights=weights,
        remaining_seconds=remaining,
        names="first\nsecond",
    )


def _ask(ends: Ends, sequence: int, tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor], layer: int = 0) -> Answer:
    slot = _post(ends, sequence, tensors, layer=layer)
    assert slot is not None
    return ends.caller.wait(slot, sequence, SECONDS, torch.empty_like(tensors[0]))


@pytest.mark.parametrize(("rows", "k", "layer"), [(1, 1, 0), (3, 2, 1), (MAX_ROWS, MAX_K, 0)])
def test_an_answer_is_the_kernel_s(ends: Ends, layers: list[NativeLayer], rows: int, k: int, layer: int) -> None:
    tensors = _tensors(rows, k, seed=rows)
    answer = _ask(ends, 1, tensors, layer)
    assert answer.outcome is Outcome.ANSWERED
    assert answer.output is not None
    assert torch.equal(answer.output, layers[layer](*tensors))
    assert 0 < answer.compute_seconds < SECONDS
    assert ends.handed == []


def test_as_many_as_slots_are_under_way_and_joined_in_any_order(ends: Ends, layers: list[NativeLayer]) -> None:
    for round_ in range(20):
        messages = {round_ * 10 + i: _tensors(2, 2, seed=round_ * 10 + i) for i in range(SHAPE.num_slots)}
        slots = {sequence: _post(ends, sequence, tensors) for sequence, tensors in messages.items()}
        order = list(messages)
        random.Random(round_).shuffle(order)
        for sequence in order:
            slot = slots[sequence]
            assert slot is not None
            answer = ends.caller.wait(slot, sequence, SECONDS, torch.empty(2, HIDDEN))
            assert answer.output is not None
            assert torch.equal(answer.output, layers[0](*messages[sequence]))


def test_a_message_without_room_is_not_posted(tmp_path: Path, kernel: NativeKernel, layers: list[NativeLayer]) -> None:
    with Ends(tmp_path, kernel, layers, most=(0, 0)) as ends:  # so that all stay with the test
        large = SHAPE.response_bytes // (HIDDEN * 4) + 1
        assert _post(ends, 1, _tensors(large, 1)) is None
        assert _post(ends, 1, _tensors(large - 1, 64)) is None, "ids and weights do not fit"
        slots = [_post(ends, sequence, _tensors(1, 1)) for sequence in range(SHAPE.num_slots)]
        assert None not in slots
        assert _post(ends, 9, _tensors(1, 1)) is None


@pytest.mark.parametrize("spoiled", [None, float("inf"), float("nan")])
def test_what_is_added_is_added_to_finite_rows(
    tmp_path: Path, kernel: NativeKernel, layers: list[NativeLayer], spoiled: float | None
) -> None:
    hidden, addend, answered = torch.randn(3, 2, HIDDEN, generator=torch.Generator().manual_seed(1)).bfloat16()
    if spoiled is not None:
        answered[1, HIDDEN - 1] = spoiled
    _, ids, weights = _tensors(2, 2)
    with Ends(tmp_path, kernel, layers, most=(0, 0)) as ends:  # so that the test answers
        slot = _post(ends, 3, (hidden, ids, weights))
        assert slot is not None
        ends.service.answer(ends.handed_over(), answered, 0.25, 0.5)
        answer = ends.caller.join(slot, 3, SECONDS, addend=addend, output=torch.empty_like(hidden))
        assert (answer.outcome, answer.compute_seconds) == (Outcome.ANSWERED, 0.5)
        assert answer.is_sum is (spoiled is None)
        assert answer.output is not None
        due = answered if spoiled is not None else answered + addend
        assert torch.equal(answer.output.view(torch.int16), due.view(torch.int16))
        assert ends.caller.wait(0, 9, 0.01, torch.empty_like(hidden)).outcome is Outcome.BROKEN, "the slot is free"


def test_nothing_is_added_to_a_refusal(tmp_path: Path, kernel: NativeKernel, layers: list[NativeLayer]) -> None:
    with Ends(tmp_path, kernel, layers, most=(0, 0)) as ends:
        rows = torch.ones(1, HIDDEN).bfloat16()
        slot = _post(ends, 3, (rows, *_tensors(1, 2)[1:]))
        assert slot is not None
        ends.service.refuse(ends.handed_over(), 3, "no")
        answer = ends.caller.join(slot, 3, SECONDS, addend=rows, output=torch.empty_like(rows))
        assert (answer.outcome, answer.text, answer.is_sum) == (Outcome.REFUSED, "no", False)


@pytest.mark.parametrize(
    ("layer", "rows", "k", "wrong_id"),
    [(2, 1, 1, 0), (0, 1, MAX_K + 1, 0), (0, MAX_ROWS + 1, 1, 0), (0, 1, 1, NUM_EXPERTS), (0, 1, 1, -2)],
)
def test_what_is_wrong_is_handed_over_and_refused(ends: Ends, layer: int, rows: int, k: int, wrong_id: int) -> None:
    hidden, ids, weights = _tensors(rows, k)
    ids[-1, -1] = wrong_id
    slot = _post(ends, 5, (hidden, ids, weights), layer=layer, remaining=60)
    assert slot is not None
    message = ends.handed_over()
    assert (message.sequence, message.layer, message.rows, message.experts_per_row) == (5, layer, rows, k)
    assert message.names == "first\nsecond"
    assert message.remaining_seconds is not None
    assert 0 < message.remaining_seconds <= 60
    if layer < 2:
        sent = b"".join(tensor.numpy().tobytes() for tensor in (hidden, ids, weights))
        assert message.payload == sent
    ends.service.refuse(message, 3, "ids: " + "no " * 400)
    answer = ends.caller.wait(slot, 5, SECONDS, torch.empty_like(hidden))
    assert (answer.outcome, answer.code, answer.output) == (Outcome.REFUSED, 3, None)
    assert answer.text == ("ids: " + "no " * 400)[:512]


def test_a_message_that_python_computes_is_answered_with_its_rows(
    tmp_path: Path, kernel: NativeKernel, layers: list[NativeLayer]
) -> None:
    with Ends(tmp_path, kernel, layers, most=(3, None)) as ends:
        assert _ask(ends, 1, _tensors(1, 3)).outcome is Outcome.ANSWERED
        slot = _post(ends, 2, _tensors(2, 2))
        assert slot is not None
        rows = torch.arange(2 * HIDDEN, dtype=torch.float32).view(2, HIDDEN)
        ends.service.answer(ends.handed_over(), rows, 0.5, 0.25)
        answer = ends.caller.wait(slot, 2, SECONDS, torch.empty(2, HIDDEN))
        assert answer.output is not None
        assert torch.equal(answer.output, rows)
        assert (answer.queue_seconds, answer.compute_seconds) == (0.5, 0.25)


def test_a_message_whose_time_has_run_out_is_not_computed(ends: Ends) -> None:
    assert _post(ends, 1, _tensors(1, 1), remaining=0.0) is not None
    assert ends.handed_over().remaining_seconds == 0


def test_an_answer_that_is_late_is_overdue_and_its_slot_is_kept(
    tmp_path: Path, kernel: NativeKernel, layers: list[NativeLayer]
) -> None:
    with Ends(tmp_path, kernel, layers, most=(0, 0)) as ends:
        slot = _post(ends, 1, _tensors(1, 1))
        assert slot is not None
        began = time.monotonic()
        answer = ends.caller.wait(slot, 1, 0.05, torch.empty(1, HIDDEN))
        assert answer.outcome is Outcome.OVERDUE
        assert 0.05 <= time.monotonic() - began < SECONDS
        assert not ends.caller.release(slot)
        ends.service.answer(ends.handed_over(), torch.zeros(1, HIDDEN), 0, 0)
        assert ends.caller.release(slot)


def test_closing_ends_a_wait(tmp_path: Path, kernel: NativeKernel, layers: list[NativeLayer]) -> None:
    with Ends(tmp_path, kernel, layers, most=(0, 0)) as ends, ThreadPoolExecutor(1) as executor:
        slot = _post(ends, 1, _tensors(1, 1))
        assert slot is not None
        waiting = executor.submit(ends.caller.wait, slot, 1, 1e9, torch.empty(1, HIDDEN))
        time.sleep(0.05)
        assert not waiting.done()
        ends.caller.close()
        assert waiting.result(SECONDS).outcome is Outcome.ENDED


def test_records_say_what_was_computed(ends: Ends) -> None:
    hidden, ids, weights = _tensors(3, 2)
    ids[:] = torch.tensor([[0, 1], [0, -1], [1, 3]])
    _ask(ends, 1, (hidden, ids, weights), layer=1)
    ids[:] = 2  # three rows of one expert are more than a few
    _ask(ends, 2, (hidden, ids, weights))
    few, many = _drained(ends, 2)
    assert (few.layer, few.rows, few.experts_per_row, few.experts_read) == (1, 3, 2, 3)
    assert (many.layer, many.experts_read) == (0, 0)
    assert 0 < few.compute_seconds <= ends.service.busy_seconds < SECONDS


def _drained(ends: Ends, number: int) -> list[Record]:
    """What is counted after an answer was sent, so that it comes a moment later."""
    found: list[Record] = []
    deadline = time.monotonic() + SECONDS
    while len(found) < number and time.monotonic() < deadline:
        found += ends.service.drain()
    return found


@pytest.mark.parametrize(
    ("shape", "nonce"),
    [(SHAPE, b"o" * NONCE_BYTES), (Shape(6, 4096, 4096), NONCE), (Shape(2, 8192, 8192), NONCE)],
)
def test_another_segment_than_was_agreed_on_is_refused(ends: Ends, shape: Shape, nonce: bytes) -> None:
    memory = mmap.mmap(-1, shape.num_bytes)
    memory[: len(ends.memory)] = ends.memory[: len(memory)]
    with pytest.raises(NativeError, match="not the segment that was agreed on"):
        CallerEnd(memory, shape, nonce, spin_microseconds=0)


@pytest.mark.parametrize(
    "shape", [Shape(0, 4096, 4096), Shape(65, 4096, 4096), Shape(1, 0, 4096), Shape(1, 4096, 4097)]
)
def test_a_shape_out_of_range_is_refused(shape: Shape) -> None:
    with pytest.raises(NativeError, match="a segment of"):
        _ = shape.num_bytes


@settings(max_examples=60)
@given(data=st.data())
def test_whatever_a_caller_writes_the_service_goes_on(
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
    kernel: NativeKernel,
    layers: list[NativeLayer],
) -> None:
    """Any bytes in headers and payloads, while they are read: it computes or hands over, and ends when told."""
    with Ends(tmp_path_factory.mktemp("hostile"), kernel, layers) as ends:
        view = (ctypes.c_char * len(ends.memory)).from_buffer(ends.memory)
        for _ in range(data.draw(st.integers(1, 8))):
            where = data.draw(st.integers(0, data.draw(st.sampled_from([HEADERS, SHAPE.num_bytes])) - 8))
            written = data.draw(st.binary(min_size=1, max_size=8))
            ctypes.memmove(ctypes.addressof(view) + where, written, len(written))
            _post(ends, data.draw(st.integers(0, 2**63)), _tensors(2, 2))
        ends.service.drain()
