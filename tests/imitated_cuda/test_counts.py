"""What a layer costs the host: kernels, copies, waits, streams and events, as the imitated device counts them.

For the forms of Mixtral, Qwen3-MoE and DeepSeek-V3. docs/gpu.md has a table of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from fiddler.checkpoint import Checkpoint
from gpu_service.calibration.measure import expert_bytes
from gpu_service.gpu_experts import grouped
from gpu_service.gpu_experts.compute import DeviceExperts
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.model import Model
from tests.support.families import tiny
from tests.support.imitated_cuda import DEVICE, Machine, imitated_cuda
from tests.support.imitated_routes import MIX
from tests.support.in_place import compute_in_place
from tests.support.routes import WAYS, Way, greedy, model_of, slots_of

FAMILIES = ("mixtral", "qwen3_moe", "deepseek_v3")
PROMPT = [5, 9, 11, 30]
MAX_KERNELS = 6
"""Of all resident experts of a layer, however many there are."""


@dataclass(frozen=True)
class Subject:
    """A model on the imitated device."""

    directory: Path
    machine: Machine
    model: Model

    @property
    def num_layers(self) -> int:
        return len(self.model.dispatcher.selections.read())

    @contextmanager
    def warm(self, way: Way) -> Iterator[None]:
        """Takes a route, and has computed a prompt and some tokens by it."""
        with slots_of(self.model, self.directory, way):
            greedy(self.model, PROMPT, 4)
            self.machine.counts.clear()
            yield


def subject_of(directory: Path, machine: Machine, dtype: torch.dtype = torch.float32) -> Subject:
    return Subject(directory, machine, model_of(directory, device=DEVICE, dtype=dtype))


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    directory = tiny.write(request.param, tmp_path_factory.mktemp(request.param))
    with imitated_cuda("eager") as machine:
        yield subject_of(directory, machine)


def decode(model: Model, rows: int = 1) -> None:
    """One step of so many sequences, all at one position."""
    tokens = torch.arange(rows)[:, None]
    with torch.inference_mode():
        model.forward(tokens, torch.full((rows, 1), 9), first_row=0, wants=Logits.LAST)


ROUTES = {name: WAYS[name] for name in ("all remote", "all resident", "remote and streamed", "prefetched")} | {
    "mixed": MIX
}


@pytest.mark.parametrize("name", ROUTES)
def test_the_host_waits_once_a_layer(subject: Subject, name: str) -> None:
    with subject.warm(ROUTES[name]):
        decode(subject.model)
        waits = subject.machine.counts.waits.copy()
    assert sum(waits.values()) == subject.num_layers, waits


def test_a_prompt_waits_once_a_layer_too(subject: Subject) -> None:
    with subject.warm(MIX), torch.inference_mode():
        subject.model.forward(torch.arange(40)[None], torch.arange(40)[None], first_row=0, wants=Logits.LAST)
        waits = subject.machine.counts.waits.copy()
    assert sum(waits.values()) == subject.num_layers, waits


def kernels_of_resident_experts(subject: Subject, rows: int) -> list[tuple[int, int]]:
    """Of each layer in a step of so many sequences: how many resident experts it computes, and in how many kernels."""
    taken: list[tuple[int, int]] = []
    run = DeviceExperts.run

    def counted(experts: DeviceExperts, layer: int, hidden: torch.Tensor, **more: Any) -> torch.Tensor:
        before = subject.machine.counts.num_kernels
        output = run(experts, layer, hidden, **more)
        taken.append((len(more["resident"]), subject.machine.counts.num_kernels - before))
        return output

    with subject.warm(WAYS["all resident"]), pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeviceExperts, "run", counted)
        decode(subject.model, rows)
    return taken


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("rows", [1, 2])
def test_resident_experts_take_few_kernels_however_many_they_are(
    subject: Subject, rows: int, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if size == "large":
        compute_in_place(monkeypatch)
    taken = kernels_of_resident_experts(subject, rows)
    assert max(num_experts for num_experts, _ in taken) >= 2
    assert all(kernels <= MAX_KERNELS for _, kernels in taken), taken


def test_experts_of_more_than_16_mib_take_as_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their form is Mixtral's; they are just too large to be copied next to each other."""
    limit = grouped.MAX_EXPERT_BYTES
    compute_in_place(monkeypatch, tile=1024)
    monkeypatch.setattr(grouped, "MAX_EXPERT_BYTES", limit)
    sizes = {"hidden_size": 1024, "intermediate_size": 1408, "num_hidden_layers": 1, "num_local_experts": 4}
    directory = tiny.write("mixtral", tmp_path, config=sizes | {"num_experts_per_tok": 3})
    (layer,) = Checkpoint.open(directory).layers
    assert expert_bytes(layer) > limit
    with imitated_cuda("eager") as machine:
        ((num_experts, kernels),) = kernels_of_resident_experts(subject_of(directory, machine), rows=1)
    assert num_experts == 3
    assert kernels <= MAX_KERNELS


@pytest.mark.parametrize("name", ["all remote", "all resident", "all streamed"])
def test_streams_and_events_are_made_once(subject: Subject, name: str) -> None:
    machine = subject.machine
    with subject.warm(WAYS[name]):
        for _ in range(4):  # until each slot has been used
            decode(subject.model)
        before = machine.num_streams_made, machine.num_events_made
        decode(subject.model)
        assert (machine.num_streams_made, machine.num_events_made) == before
