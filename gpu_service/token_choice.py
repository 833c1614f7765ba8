"""What a step's logits make of each row: the next token, or why there is none. Beams are beam.py's."""

from collections.abc import Sequence

import torch

from gpu_service import request as words
from gpu_service.request import TokenLogprobs
from gpu_service.sampling import Sampler, sample_with_logprobs


class NotFiniteError(Exception):
    """The model has computed something that is not a number."""


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
