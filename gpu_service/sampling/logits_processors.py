"""Logits processors of our own: what transformers has none for, or one that takes too long."""

from collections.abc import Sequence
from typing import cast

import torch
from transformers import LogitsProcessor


class OccurrencePenalties(LogitsProcessor):
    """OpenAI's penalties: logit - count * frequency_penalty - (count > 0) * presence_penalty.

    They count what was generated and not the prompt, as OpenAI's do; transformers has no such processor.
    """

    def __init__(self, frequency_penalty: float, presence_penalty: float, prompt_length: int) -> None:
        self._frequency_penalty = frequency_penalty
        self._presence_penalty = presence_penalty
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.FloatTensor:
        """[rows, tokens] int64 and [rows, vocab] -> [rows, vocab]."""
        generated = input_ids[:, self._prompt_length :]
        ones = torch.ones((), dtype=scores.dtype, device=scores.device).expand(generated.shape)
        counts = torch.zeros_like(scores).scatter_add_(1, generated, ones)
        penalties = self._frequency_penalty * counts + self._presence_penalty * (counts > 0)
        return cast("torch.FloatTensor", scores - penalties)


class TokenBias(LogitsProcessor):
    """Adds to the logits of single tokens, as transformers' SequenceBiasLogitsProcessor does with sequences of one.

    That one looks at each entry several times in Python, which for all of a large vocabulary takes a quarter of a
    second; meanwhile everybody would wait.
    """

    def __init__(self, biases: Sequence[tuple[int, float]], device: torch.device) -> None:
        """(token id, what is added to its logit), no id twice."""
        self._ids = torch.tensor([token_id for token_id, _ in biases], device=device)
        self._biases = torch.tensor([bias for _, bias in biases], dtype=torch.float32, device=device)

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.FloatTensor:
        """[rows, vocab] -> [rows, vocab]."""
        return cast("torch.FloatTensor", scores.index_add(1, self._ids, self._biases.expand(len(scores), -1)))
