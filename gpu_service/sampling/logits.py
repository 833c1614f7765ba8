"""Rows of a step's logits: finding non-finite ones, selecting some, replacing some."""

import math
from collections.abc import Mapping, Sequence

import torch


def non_finite_rows(logits: torch.Tensor) -> list[int]:
    """The rows of [rows, vocab] float32 that contain an infinity or NaN."""
    # one pass: a sum is finite if all its terms are, since logits are far too small for their sum to overflow
    return [row for row, total in enumerate(logits.sum(dim=-1).tolist()) if not math.isfinite(total)]


def rows_of(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Some rows of [rows, vocab], in that order: a view if they are adjacent."""
    first = rows[0]
    if rows == list(range(first, first + len(rows))):
        return logits[first : first + len(rows)]
    return logits[torch.tensor(rows, device=logits.device)]


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
