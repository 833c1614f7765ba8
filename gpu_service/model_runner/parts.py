"""A batch that is computed in parts: its logits, and which of its rows were spoiled, as if it had been one forward."""

from collections.abc import Callable, Iterable

import torch


def compute_parts(parts: Iterable[tuple[int, Callable[[], torch.Tensor]]], spoiled_rows: set[int]) -> torch.Tensor:
    """Computes the parts in their order: [sequences, kept tokens, vocab].

    Args:
        parts: How many of the batch's rows come before it, and what computes its logits.
        spoiled_rows: Dispatcher.spoiled_rows, which counts the rows of one forward; afterwards those of the batch.
    """
    logits, spoiled = [], set[int]()
    for begin, compute in parts:
        logits.append(compute())
        spoiled.update(begin + row for row in spoiled_rows)
        spoiled_rows.clear()
    spoiled_rows.update(spoiled)
    return torch.cat(logits)
