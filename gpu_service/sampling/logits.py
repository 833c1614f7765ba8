"""Rows of a step's logits: those that can be used, some of them, and some replaced."""

import math
from collections.abc import Mapping, Sequence

import torch


def unusable_rows(logits: torch.Tensor) -> list[int]:
    """Rows of [rows, vocab] float32 with an infinity or what is not a number."""
    # one pass: a sum is finite where all its terms are, since logits are far too small to overflow together
    return [row for row, total in enumerate(logits.sum(dim=-1).tolist()) if not math.isfinite(total)]


def rows_of(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Some rows of [rows, vocab], in that order: a view where they are adjacent."""
    first = rows[0]
    if rows == list(range(first, first + len(rows))):
        return logits[first : first + len(rows)]
    return logits[torch.tensor(rows, device=logits.device)]


def largest(values: torch.Tensor) -> torch.Tensor:
    """[rows, vocab] float32 -> [rows] int64: where each row's largest is, the first of several; not on another device.

    As torch's argmax, which on the CPU takes twenty times as long as numpy's.
    """
    if values.device.type != "cpu":
        return values.argmax(dim=-1)
    return torch.from_numpy(values.numpy().argmax(axis=-1))


def with_rows(logits: torch.Tensor, replaced: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """[rows, vocab] with others of [1, vocab] in the place of some; what is given stays as it is."""
    if not replaced:
        return logits
    scores = logits.clone()
    for row, its_scores in replaced.items():
        scores[row] = its_scores[0]
    return scores
