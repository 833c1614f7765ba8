"""Chooses each request's next token. Logits processors are transformers'; random numbers are the request's own."""

import secrets
from collections.abc import Sequence
from typing import cast

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gpu_service.sampling_parameters import SamplingParameters

Text = tuple[Sequence[int], Sequence[int]]


class Sampler:
    """One request's way to choose a token. Draws what transformers' generate() draws with the same seed."""

    def __init__(self, parameters: SamplingParameters, device: torch.device) -> None:
        """Prepares the processors, in transformers' order.

        Raises:
            ValueError: A processor refuses its parameter.
        """
        self._device = device
        self._greedy = parameters.temperature == 0
        self._processors = LogitsProcessorList()
        if parameters.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(parameters.repetition_penalty))
        self.is_plain = self._greedy and not self._processors
        if self._greedy:
            return
        self._generator = torch.Generator(device)
        self._generator.manual_seed(secrets.randbits(63) if parameters.seed is None else parameters.seed)
        if parameters.temperature != 1:
            self._processors.append(TemperatureLogitsWarper(float(parameters.temperature)))
        if parameters.top_k > 0:
            self._processors.append(TopKLogitsWarper(parameters.top_k))
        if parameters.top_p < 1:
            self._processors.append(TopPLogitsWarper(parameters.top_p))
        if parameters.min_p > 0:
            self._processors.append(MinPLogitsWarper(parameters.min_p))

    def choose(self, logits: torch.Tensor, token_ids: Sequence[int]) -> torch.Tensor:
        """[1, vocab] float32 and the request's tokens so far -> [1] int64."""
        history = torch.tensor([token_ids], dtype=torch.int64, device=self._device)
        scores: torch.Tensor = self._processors(cast("torch.LongTensor", history), cast("torch.FloatTensor", logits))
        if self._greedy:
            return scores.argmax(dim=-1)
        return torch.multinomial(torch.softmax(scores, dim=-1), 1, generator=self._generator)[0]


def sample(logits: torch.Tensor, samplers: Sequence[Sampler], texts: Sequence[Text]) -> list[int]:
    """Chooses one token for each row.

    Args:
        logits: [requests, vocab] float32.
        samplers: One for each row.
        texts: The tokens of each row so far, as prompt and output.
    """
    tokens = logits.argmax(dim=-1)
    for row, sampler in enumerate(samplers):
        if not sampler.is_plain:
            tokens[row : row + 1] = sampler.choose(logits[row : row + 1], [*texts[row][0], *texts[row][1]])
    return tokens.tolist()  # the step's one wait for the device
