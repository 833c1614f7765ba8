"""Decode steps in bfloat16 on the CPU whose layers send their rows to the CPU expert service in the native call."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from fiddler.kernels.linear import shared_kernel
from gpu_service.cpu_experts import client as client_module
from gpu_service.cpu_experts.client import ExpertClient
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.cpu_experts.shared_segment import SharedSegment
from gpu_service.errors import ExpertServiceError
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.model import Model
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.moe.layer import MoeLayer
from tests.support import shared_services
from tests.support.families import tiny
from tests.support.in_process_service import value
from tests.support.shared_services import SharedService

CPU = torch.device("cpu")
PROMPT = list(range(5, 24))
SENT = ["mixtral", "qwen3_moe", "gpt_oss", "olmoe"]
NOT_SENT = ["glm4_moe", "qwen2_moe", "minimax_m2"]
STEPS = 4


@dataclass
class Pair:
    """A model and the service that computes its experts."""

    model: Model
    service: SharedService
    client: ExpertClient
    dispatcher: Dispatcher
    slots: list[int] = field(default_factory=list)
    """Where the native calls posted, one for each layer that they sent."""

    def step(self, number: int, rows: int = 1) -> torch.Tensor:
        position = len(PROMPT) + number
        return _forward(self.model, [[7 + number + row] for row in range(rows)], position)


@pytest.fixture(autouse=True)
def _times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_HEAL_SECONDS", 10.0)


@contextmanager
def _pair(family: str, directory: Path, monkeypatch: pytest.MonkeyPatch, *, in_process: bool = False) -> Iterator[Pair]:
    """Two rows that have the prompt behind them."""
    if shared_kernel(torch.get_num_threads()) is None:
        pytest.skip("the native library was not built, or has no vectors for this CPU")
    slots: list[int] = []
    own = MoeLayer.sum_prepared

    def watched(layer: MoeLayer, prepared: object, slot: int, **more: object) -> torch.Tensor:
        slots.append(slot)
        return own(layer, prepared, slot, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(MoeLayer, "sum_prepared", watched)
    directory.mkdir(exist_ok=True)
    with shared_services.serve(tiny.write(family, directory), directory, dtype=torch.bfloat16) as service:
        checkpoint = service.checkpoint
        client = ExpertClient(service.address, torch.bfloat16, timeout_seconds=60, max_message_bytes=2**22)
        client.connect(checkpoint.fingerprint)
        local = InProcessExperts(checkpoint) if in_process else None
        dispatcher = Dispatcher(checkpoint, CPU, client, in_process=local)
        model = Model(checkpoint, dispatcher, device=CPU, dtype=torch.bfloat16, num_rows=2, max_context=64)
        for row in range(2):
            _forward(model, [PROMPT], 0, row)
        dispatcher.clear_counts()
        assert slots == [], "a prompt is no decode step"
        yield Pair(model, service, client, dispatcher, slots)
        client.close()


def _forward(model: Model, token_ids: list[list[int]], position: int, first_row: int = 0) -> torch.Tensor:
    tokens = torch.tensor(token_ids)
    positions = torch.full_like(tokens[:, :1], position) + torch.arange(tokens.shape[1])
    with torch.inference_mode():
        return model.forward(tokens, positions, first_row=first_row, wants=Logits.LAST)


def _num_layers(pair: Pair) -> int:
    return len(pair.dispatcher.selections.read())


@pytest.mark.parametrize("family", SENT)
def test_logits_are_those_of_layers_that_are_sent_by_themselves(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    for sends in (True, False):
        with monkeypatch.context() as patches, _pair(family, tmp_path / str(sends), patches) as pair:
            if not sends:
                patches.setattr(Dispatcher, "prepare", lambda *_, **__: None)
            steps = [pair.step(number, rows=1 + number % 2) for number in range(STEPS)]
            computed.append((steps, pair.dispatcher.selections.read(), pair.dispatcher.selections.read_routes()))
            assert len(pair.slots) == (_num_layers(pair) * STEPS if sends else 0)
            assert all(slot >= 0 for slot in pair.slots)
    (sent, sent_counts, sent_routes), (own, own_counts, own_routes) = computed
    assert all(torch.equal(one, other) for one, other in zip(sent, own, strict=True))
    assert (sent_counts, sent_routes) == (own_counts, own_routes)
    assert sum(map(sum, sent_counts)) > 0


@pytest.mark.parametrize("family", NOT_SENT)
def test_layers_that_compute_more_than_their_experts_are_left_to_their_code(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _pair(family, tmp_path, monkeypatch) as pair:
        assert pair.step(0).isfinite().all()
        assert pair.slots == []


def test_messages_are_counted_after_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _pair("mixtral", tmp_path, monkeypatch) as pair:
        calls = value("fiddler_expert_call_seconds_count")
        sent = value("fiddler_expert_call_bytes_total", direction="sent")
        pair.step(0)
        layers = _num_layers(pair)
        assert value("fiddler_expert_call_seconds_count") == calls + layers
        hidden, k = pair.service.checkpoint.layers[0].hidden_size, 2
        assert value("fiddler_expert_call_bytes_total", direction="sent") == sent + layers * (2 * hidden + 8 * k)
        routes = pair.dispatcher.selections.read_routes()
        assert routes == [{"resident": 0, "streamed": 0, "remote": k}] * layers
        assert all(seconds > 0 for seconds in pair.dispatcher.costs.seconds)


def test_without_a_free_slot_a_layer_goes_over_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _pair("qwen3_moe", tmp_path, monkeypatch) as pair:
        expected = pair.step(0)
        layer, k = pair.service.checkpoint.layers[0], 2
        rows, ids = torch.zeros(1, layer.hidden_size, dtype=torch.bfloat16), torch.zeros(1, k, dtype=torch.int32)
        held = [pair.client.submit(0, rows, expert_ids=ids, routing_weights=torch.ones(1, k)) for _ in range(6)]
        pair.slots.clear()
        assert torch.equal(pair.step(0), expected)
        assert pair.slots == [-1] * _num_layers(pair)
        for pending in held:
            assert pending.join().shape == rows.shape


def test_what_a_broken_stream_left_unanswered_is_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _pair("mixtral", tmp_path, monkeypatch) as pair:
        expected = pair.step(0)
        own = SharedSegment.own
        broken: list[int] = []

        def own_and_break(segment: SharedSegment, slot: int, owner: object) -> None:
            own(segment, slot, owner)
            if not broken:
                broken.append(slot)
                pair.client._link.stream()._call.cancel()  # as if the connection broke

        monkeypatch.setattr(SharedSegment, "own", own_and_break)
        assert torch.equal(pair.step(0), expected)
        assert broken
        assert pair.client.available


def test_a_service_that_is_lost_in_the_middle_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _pair("qwen3_moe", tmp_path, monkeypatch, in_process=True) as pair:
        monkeypatch.setattr(client_module, "_HEAL_SECONDS", 0.05)
        expected = pair.step(0)
        own, layers = MoeLayer.prepare, _num_layers(pair)
        counter = iter(range(100))

        def prepare_and_lose(layer: MoeLayer, rows: int, experts_per_row: int) -> object:
            prepared = own(layer, rows, experts_per_row)
            if next(counter) == 1:
                pair.service.stop()
            return prepared

        monkeypatch.setattr(MoeLayer, "prepare", prepare_and_lose)
        pair.dispatcher.clear_counts()
        replanned = value("fiddler_replanned_layers_total")
        logits = pair.step(0)
        assert torch.allclose(logits, expected, atol=0.02 * expected.abs().max().item())
        assert not pair.client.available
        routes = pair.dispatcher.selections.read_routes()
        assert [route["remote"] for route in routes] == [2] + [0] * (layers - 1)
        assert [route["streamed"] for route in routes] == [0] + [2] * (layers - 1)
        assert value("fiddler_replanned_layers_total") == replanned + 1


def test_without_another_way_the_loss_fails_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _pair("mixtral", tmp_path, monkeypatch) as pair:
        monkeypatch.setattr(client_module, "_HEAL_SECONDS", 0.05)
        pair.service.stop()
        with pytest.raises(ExpertServiceError):
            pair.step(0)


def test_sums_that_are_not_finite_are_told_and_zeros_in_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _pair("mixtral", tmp_path, monkeypatch) as pair:
        expected = pair.step(0, rows=2)
        real = SharedSegment.wait
        layers = iter(range(100))

        def wait(segment: SharedSegment, slot: int, sequence: int, seconds: float, *tensors: torch.Tensor) -> object:
            output, _ = tensors
            if next(layers) != 0:
                return real(segment, slot, sequence, seconds, *tensors)
            answer = real(segment, slot, sequence, seconds, output)  # without the addend
            output[1, 3] = float("nan")
            return answer

        monkeypatch.setattr(SharedSegment, "wait", wait)
        rows = value("fiddler_spoiled_rows_total")
        logits = pair.step(0, rows=2)
        assert pair.model.take_non_finite() == {1}
        assert value("fiddler_spoiled_rows_total") == rows + 1
        assert logits.isfinite().all()
        assert torch.equal(logits[0], expected[0])
        assert not torch.equal(logits[1], expected[1])
