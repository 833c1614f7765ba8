"""Draws a token for each row with the row's own generator: the token that torch.multinomial draws with it.

torch.multinomial divides each probability by an exponential random number and takes the largest quotient. It uses one
generator for all rows. Here each row has its own random numbers, and the rest is computed for all rows at once. On a
CPU torch computes an exponential number as -log(1 - u) of a uniform one, number by number. Here all logarithms are
computed at once with vector instructions, which takes a third of the time.
"""

from collections.abc import Sequence

import torch

from gpu_service.sampling.logits import largest


def draw(probabilities: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Draws one token for each row; does not wait for a GPU.

    Args:
        probabilities: [rows, vocab] float32, each row with a value above 0.
        generators: One for each row.

    Returns:
        [rows] int64.
    """
    fill = _of_logarithms if _IS_LOGARITHM and probabilities.device.type == "cpu" else _of_torch
    return largest(probabilities / fill(torch.empty_like(probabilities), generators))


def _of_torch(times: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Fills each row with exponential random numbers from its generator."""
    for row, generator in zip(times, generators, strict=True):
        row.exponential_(generator=generator)
    return times


def _of_logarithms(times: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Fills each row with the same numbers, computed by the same steps, on the CPU."""
    uniform = torch.empty_like(times, dtype=torch.float64)
    for row, generator in zip(uniform, generators, strict=True):
        row.uniform_(generator=generator)
    return times.copy_(uniform.neg_().log1p_().neg_())


def _is_logarithm() -> bool:
    """Whether this build of torch computes exponential numbers as logarithms, bit for bit."""
    one, other = (
        fill(torch.empty(1, 1024), [torch.Generator().manual_seed(1)]) for fill in (_of_torch, _of_logarithms)
    )
    return torch.equal(one, other)


_IS_LOGARITHM = _is_logarithm()
