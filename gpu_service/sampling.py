"""Chooses each request's next token. Logits processors are transformers'; random numbers are the request's own."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How the next token is chosen, with nothing left unset."""

    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_k: int = 0
    """0: all."""
    top_p: float = 1.0
    seed: int | None = None
    """None: a different one each time."""

    @classmethod
    def resolve(
        cls,
        defaults: GenerationConfig,
        temperature: float | None,
        top_k: int | None,
        top_p: float | None,
        seed: int | None,
    ) -> "SamplingParameters":
        """Fills what is None from the model's generation_config, where that one samples."""
        samples = bool(defaults.do_sample)

        def default(value: float | None, neutral: float) -> float:
            return value if samples and value is not None else neutral

        return cls(
            temperature=default(defaults.temperature, float(samples)) if temperature is None else temperature,
            top_k=int(default(defaults.top_k, 0)) if top_k is None else top_k,
            top_p=default(defaults.top_p, 1.0) if top_p is None else top_p,
            seed=seed,
        )


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
