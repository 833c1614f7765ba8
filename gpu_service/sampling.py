"""Chooses each request's next token. Logits processors are transformers'; random numbers are the request's own."""

import secrets
from collections.abc import Sequence
from typing import cast

import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gpu_service.sampling_parameters import SamplingParameters


class Sampler:
    """One request's way to choose a token. Draws what transformers' generate() draws with the same seed."""

    def __init__(self, parameters: SamplingParameters, device: torch.device) -> None:
        self.greedy = parameters.temperature == 0
        if self.greedy:
            return
        self._generator = torch.Generator(device)
        self._generator.manual_seed(secrets.randbits(63) if parameters.seed is None else parameters.seed)
        self._processors = LogitsProcessorList()  # in transformers' order
        if parameters.temperature != 1:
            self._processors.append(TemperatureLogitsWarper(parameters.temperature))
        if parameters.top_k > 0:
            self._processors.append(TopKLogitsWarper(parameters.top_k))
        if parameters.top_p < 1:
            self._processors.append(TopPLogitsWarper(parameters.top_p))

    def draw(self, logits: torch.Tensor) -> torch.Tensor:
        """[1, vocab] float32 -> [1] int64."""
        none = torch.empty(1, 0, dtype=torch.int64)  # these processors look at no token
        scores = self._processors(cast("torch.LongTensor", none), cast("torch.FloatTensor", logits))
        return torch.multinomial(torch.softmax(scores, dim=-1), 1, generator=self._generator)[0]


def sample(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """Chooses one token for each row.

    Args:
        logits: [requests, vocab] float32.
        samplers: One for each row.
    """
    tokens = logits.argmax(dim=-1)
    for row, sampler in enumerate(samplers):
        if not sampler.greedy:
            tokens[row : row + 1] = sampler.draw(logits[row : row + 1])
    return tokens.tolist()  # the step's one wait for the device
