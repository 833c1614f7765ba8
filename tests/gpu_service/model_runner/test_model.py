"""Which sequences of a batch have non-finite experts, whether the batch is computed at once or in parts."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fiddler.checkpoint import Checkpoint
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.errors import ExpertServiceError
from gpu_service.model_runner.forward_input import Logits, Span
from gpu_service.model_runner.model import Model
from gpu_service.moe.dispatcher import Dispatcher
from tests.support.families import tiny

CPU = torch.device("cpu")
ROWS = 3
FLOOR_SCALE = 8
"""Llama-4's rows are computed apart if their positions divided by this differ."""
GROUPED = {"attn_temperature_tuning": True, "floor_scale": FLOOR_SCALE, "num_experts_per_tok": 1}


class _Experts(InProcessExperts):
    """Gives what is not a number for one row of one call of the first layer, or fails at it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.faults: dict[int, int | Exception] = {}
        """By the number of the call: the row, or what is raised."""
        self.num_calls = 0

    def submit(self, layer: int, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        computed = super().submit(layer, hidden, *args, **kwargs)
        if layer == 0:
            fault = self.faults.get(self.num_calls)
            self.num_calls += 1
            if isinstance(fault, Exception):
                raise fault
            if fault is not None:
                computed.output[fault] = torch.nan
        return computed


def _model(family: str, directory: Path, config: dict[str, Any]) -> tuple[Model, _Experts]:
    checkpoint = Checkpoint.open(tiny.write(family, directory, config=config))
    experts = _Experts(checkpoint)
    dispatcher = Dispatcher(checkpoint, CPU, experts)
    return Model(checkpoint, dispatcher, device=CPU, dtype=torch.float32, num_rows=ROWS, max_context=64), experts


def _forward(model: Model, token_ids: list[list[int]], positions: list[int], first_row: int = 0) -> torch.Tensor:
    tokens = torch.tensor(token_ids)
    starts = torch.tensor(positions)[:, None] + torch.arange(tokens.shape[1])
    with torch.inference_mode():
        return model.forward(tokens, starts, first_row=first_row, wants=Logits.LAST)


@pytest.mark.parametrize(
    ("family", "config", "calls"),
    [
        ("mixtral", {}, [(0, 0), (0, 1), (0, 2)]),
        ("llama4_text", GROUPED, [(0, 0), (0, 1), (1, 0)]),
        ("qwen3_next", {}, [(0, 0), (1, 0), (2, 0)]),
    ],
    ids=["together", "in two groups", "row by row"],
)
def test_a_non_finite_row_is_known_by_its_place_in_the_batch(
    family: str, config: dict[str, Any], calls: list[tuple[int, int]], tmp_path: Path
) -> None:
    model, experts = _model(family, tmp_path, config)
    positions = [FLOOR_SCALE - 3, FLOOR_SCALE - 3, FLOOR_SCALE + 1]
    for row, position in enumerate(positions):
        _forward(model, [list(range(5, 5 + position))], [0], first_row=row)
    for sequence, (call, row) in enumerate(calls):
        experts.num_calls, experts.faults = 0, {call: row}
        logits = _forward(model, [[7], [8], [9]], positions)
        assert len(logits) == ROWS
        assert experts.num_calls == calls[-1][0] + 1
        assert model.take_non_finite() == {sequence}
        assert model.take_non_finite() == set()


@pytest.mark.parametrize("family", ["mixtral", "qwen3_next", "switch_transformers"])
def test_a_non_finite_token_of_a_prompt_is_its_sequence_s(family: str, tmp_path: Path) -> None:
    model, experts = _model(family, tmp_path, {})
    experts.faults = {0: 4}
    _forward(model, [[5, 6, 7, 8, 9, 10]], [0])
    assert model.take_non_finite() == {0}


@pytest.mark.parametrize("max_rows", [None, 2])
def test_a_non_finite_token_of_packed_spans_is_its_span_s(max_rows: int | None, tmp_path: Path) -> None:
    model, experts = _model("mixtral", tmp_path, {})
    model.dispatcher.max_rows = max_rows  # the rows of a layer are computed in parts
    spans = [
        Span(row=row, start=0, token_ids=token_ids, length=9, logits=logits)
        for row, (token_ids, logits) in enumerate([([5], Logits.LAST), ([6, 7, 8], Logits.ALL), ([9, 10], Logits.NONE)])
    ]
    for token, due in enumerate([0, 1, 1, 1, 2, 2]):
        experts.num_calls = 0
        experts.faults = {token // max_rows: token % max_rows} if max_rows else {0: token}
        with torch.inference_mode():
            assert len(model.compute(spans)) == 4
        assert model.take_non_finite() == {due}


def test_the_rows_of_a_batch_that_failed_are_forgotten(tmp_path: Path) -> None:
    model, experts = _model("qwen3_next", tmp_path, {})
    for row in range(2):
        _forward(model, [[5, 6]], [0], first_row=row)
    experts.num_calls, experts.faults = 0, {0: 0, 1: ExpertServiceError("lost")}
    with pytest.raises(ExpertServiceError):
        _forward(model, [[7], [8]], [2, 2])
    _forward(model, [[5, 6]], [0])
    assert model.take_non_finite() == set()
