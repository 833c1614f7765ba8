"""What a step's logits make of each row: the next token, or why there is none. Beams are beam.py's."""

import math
from collections.abc import Sequence

import torch

from gpu_service import request as words
from gpu_service.request import TokenLogprobs
from gpu_service.sampling import Sampler, sample_with_logprobs


class NotFiniteError(Exception):
    """The model has computed something that is not a number."""


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


def choose(logits: torch.Tensor, sequences: Sequence[words.Sequence]) -> list[TokenLogprobs | Exception]:
    """The next token of each sequence, with its log probabilities where they were asked for.

    Args:
        logits: [sequences, vocab] float32, all finite.
        sequences: Those that are sampled, none a beam.

    Returns:
        For each sequence its token, or what its own sampler raised.
    """
    try:
        return list(_sample(logits, sequences))
    except torch.AcceleratorError:
        raise
    except Exception as error:
        if len(sequences) == 1:
            return [error]
    # one of them it was; the others lose nothing by being asked again, since a sampler draws last
    return [choose(logits[row : row + 1], [sequence])[0] for row, sequence in enumerate(sequences)]


def _sample(logits: torch.Tensor, sequences: Sequence[words.Sequence]) -> list[TokenLogprobs]:
    samplers: list[Sampler] = []
    for sequence in sequences:
        assert sequence.sampler is not None
        samplers.append(sequence.sampler)
    outputs = [sequence.output for sequence in sequences]
    return sample_with_logprobs(logits, samplers, outputs, [sequence.request.logprobs for sequence in sequences])
