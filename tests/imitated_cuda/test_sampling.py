"""Choosing tokens on the device: the same tokens as on the CPU, and one wait of the host for each step."""

from typing import Any

import torch

from gpu_service.engine.events import Failed
from gpu_service.engine.request_ids import RequestIds
from gpu_service.engine.stepper import Stepper
from gpu_service.errors import NonFiniteError
from gpu_service.sampling.parameters import SamplingParameters
from tests.support.counting_model import CountingModel, Reader
from tests.support.imitated_cuda import DEVICE, Machine, imitated_cuda
from tests.support.routes import CPU

_NOT_A_NUMBER_AFTER = 90
_NUM_TOKENS = 6


def _readers() -> list[Reader]:
    """Likeliest, drawn alike in rows that are not adjacent, penalties, log probabilities, and one that fails."""
    warm, hot = SamplingParameters(temperature=0.5, seed=3), SamplingParameters(temperature=2.0, top_k=5, seed=4)
    kinds: list[dict[str, Any]] = [
        {"sampling": warm},
        {},
        {"sampling": warm},
        {"sampling": hot},
        {"logprobs": 2},
        {"sampling": SamplingParameters(temperature=0, repetition_penalty=1.3)},
        {},
    ]
    return [Reader([10 + 13 * number], max_tokens=_NUM_TOKENS, **each) for number, each in enumerate(kinds)]


def _run(machine: Machine | None) -> tuple[list[Reader], list[int]]:
    """Requests that have ended, and the waits of each step after its forward."""
    model = CountingModel()
    model.device = CPU if machine is None else DEVICE
    model.nan_after = _NOT_A_NUMBER_AFTER
    compute = model.compute

    def computed(spans: Any) -> torch.Tensor:
        logits = compute(spans).to(model.device)
        if machine is not None:
            machine.counts.clear()
        return logits

    model.compute = computed  # type: ignore[method-assign]
    stepper = Stepper(
        model,  # type: ignore[arg-type]
        model.scheduler(8, max_waiting=64, chunk=8),
        ids=RequestIds(),
        on_failure=lambda error: None,
    )
    readers, waits = _readers(), []
    for reader in readers:
        stepper.add(reader.answer)
    while stepper.step():
        waits.append(0 if machine is None else machine.counts.num_waits)
    return readers, waits


def _outcomes(readers: list[Reader]) -> list[tuple[list[int], type]]:
    read = map(Reader.read, readers)
    return [(tokens, type(end.error) if isinstance(end, Failed) else type(end)) for tokens, end in read]


def test_a_step_waits_once_for_its_tokens_and_whether_they_are_numbers() -> None:
    expected, _ = _run(None)
    with imitated_cuda("late") as machine:
        readers, waits = _run(machine)
    assert waits == [1] * len(waits)
    assert len(waits) >= _NUM_TOKENS, "prompts together, then tokens"
    outcomes = _outcomes(readers)
    assert outcomes == _outcomes(expected)
    assert outcomes[-1] == ([89, 90], NonFiniteError)
    assert all(len(tokens) == _NUM_TOKENS for tokens, _ in outcomes[:-1])
