"""Rows of a step's logits: finding non-finite ones, selecting some, replacing some."""

import math
from collections.abc import Mapping, Sequence

import torch


def sums_of(logits: torch.Tensor) -> torch.Tensor:
    """[rows, vocab] float32 -> [rows]: not finite if the row contains an infinity or NaN."""
    # one pass: a sum is finite if all its terms are, since logits are far too small for their sum to overflow
    return logits.sum(dim=-1)


def non_finite_rows(logits: torch.Tensor) -> list[int]:
    """The rows of [rows, vocab] float32 that contain an infinity or NaN. Waits for the device."""
    return [row for row, total in enumerate(sums_of(logits).tolist()) if not math.isfinite(total)]


def rows_of(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Some rows of [rows, vocab], in that order: a view if they are adjacent."""
    return logits[index_of(rows, logits.device)]


def index_of(rows: Sequence[int], device: torch.device) -> slice | torch.Tensor:
    """What selects these rows of a tensor on the device; the host does not wait for it."""
    first = rows[0]
    if rows == list(range(first, first + len(rows))):
        return slice(first, first + len(rows))
    return to_device(torch.tensor(rows), device)


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies values from the CPU; the host does not wait, as it would for memory that is not pinned."""
    if device.type == "cpu":
        return values
    return torch.empty_like(values, pin_memory=True).copy_(values).to(device, non_blocking=True)


def largest(values: torch.Tensor) -> torch.Tensor:
    """[rows, vocab] float32 -> [rows] int64: the column of each row's maximum, the first of equal ones.

    The result stays on the device. It is what torch's argmax returns, which takes twenty times as long on the CPU as
    numpy's.
    """
    if values.device.type != "cpu":
        return values.argmax(dim=-1)
    return torch.from_numpy(values.numpy().argmax(axis=-1))


def with_rows(logits: torch.Tensor, replaced: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """A copy of [rows, vocab] in which some rows are replaced by others of [1, vocab]; the logits if none is."""
    if not replaced:
        return logits
    scores = logits.clone()
    for row, its_scores in replaced.items():
        scores[row] = its_scores[0]
    return scores
