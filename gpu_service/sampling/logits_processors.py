"""Logits processors of our own: what transformers has none for, or one that takes too long."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from transformers import (
    ForcedBOSTokenLogitsProcessor,
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from gpu_service.sampling.outputs import Ending
from gpu_service.sampling.parameters import SamplingParameters


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


WarperValues = tuple[float, int, float, float, float]

_CPU = torch.device("cpu")


def processors(
    parameters: SamplingParameters,
    ending: Ending | None = None,
    *,
    preceding_length: int = 0,
    device: torch.device = _CPU,
) -> list[LogitsProcessor]:
    """What changes logits before anything is drawn, in transformers' order.

    It holds no state of a row: all of a request's generations, or beams, share it.

    Args:
        parameters: What was asked.
        ending: When a generation ends; None: nothing is ruled out.
        preceding_length: Tokens that the history begins with and that were not generated.
        device: The device of the logits.

    Raises:
        ValueError: A processor refuses its parameter.
    """
    chain: list[LogitsProcessor] = []
    if parameters.logit_bias:
        chain.append(TokenBias(parameters.logit_bias, device))
    if parameters.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(float(parameters.repetition_penalty)))
    if ending is not None and ending.min_tokens > 0 and ending.end_ids:
        ids = torch.tensor(sorted(ending.end_ids), device=device)
        chain.append(MinNewTokensLengthLogitsProcessor(preceding_length, ending.min_tokens, ids))
    if parameters.forced_bos_token_id is not None:
        chain.append(ForcedBOSTokenLogitsProcessor(parameters.forced_bos_token_id))
    if parameters.frequency_penalty or parameters.presence_penalty:
        chain.append(OccurrencePenalties(parameters.frequency_penalty, parameters.presence_penalty, preceding_length))
    return chain


def warpers(parameters: SamplingParameters, same_of_equals: bool = True) -> list[LogitsProcessor]:
    """What shapes the distribution that a token is drawn from, in transformers' order; see TopP for `same_of_equals`.

    Raises:
        ValueError: A warper refuses its parameter.
    """
    chain: list[LogitsProcessor] = []
    if parameters.temperature != 1:
        chain.append(TemperatureLogitsWarper(float(parameters.temperature)))
    if parameters.top_k > 0:
        chain.append(TopKLogitsWarper(parameters.top_k))
    if parameters.top_p < 1:
        chain.append(TopP(parameters.top_p, same_of_equals))
    if parameters.min_p > 0:
        chain.append(MinPLogitsWarper(parameters.min_p))
    if parameters.typical_p < 1:
        chain.append(TypicalLogitsWarper(parameters.typical_p))
    return chain


def _warper_values(parameters: SamplingParameters) -> WarperValues:
    return parameters.temperature, parameters.top_k, parameters.top_p, parameters.min_p, parameters.typical_p


def apply(chain: Sequence[LogitsProcessor], history: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
    """[rows, tokens] int64 and [rows, vocab] -> [rows, vocab]."""
    for processor in chain:  # transformers' own list looks up each one's signature at every call
        scores = processor(cast("torch.LongTensor", history), cast("torch.FloatTensor", scores))
    return scores


class TopP(TopPLogitsWarper):
    """TopPLogitsWarper, faster: numpy sorts with vector instructions, and torch cuts with them."""

    def __init__(self, top_p: float, same_of_equals: bool = True) -> None:
        """Prepares nothing.

        Args:
            top_p: The least probability of all that are kept together.
            same_of_equals: Whether of equal logits those are kept that transformers keeps, which takes its time.
        """
        super().__init__(top_p)
        self._same_of_equals = same_of_equals

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.FloatTensor:
        """[rows, vocab] -> [rows, vocab], with -inf where a token is not among the likeliest."""
        if scores.device.type != "cpu" or scores.dtype is not torch.float32:
            return self._transformers(input_ids, scores)
        values = scores.numpy()
        ordered = torch.from_numpy(np.sort(values, axis=-1))
        # as transformers computes it, on the same values in the same order; sums of what is not negative only grow
        sums = ordered.softmax(dim=-1).cumsum(dim=-1)
        num_removed = torch.searchsorted(sums, sums.new_full((len(sums), 1), 1 - self.top_p), right=True)
        num_removed.clamp_(max=scores.shape[-1] - self.min_tokens_to_keep)
        least_kept = ordered.gather(1, num_removed)
        num_less = torch.searchsorted(ordered, least_kept)
        greatest_less = ordered.gather(1, (num_less - 1).clamp_(min=0))
        borders = zip(
            *(each[:, 0].tolist() for each in (num_removed, num_less, least_kept, greatest_less)), strict=True
        )
        warped = scores.clone()
        for row, (its_scores, (removed, less, least, greatest)) in enumerate(
            zip(warped.unbind(), borders, strict=True)
        ):
            if removed > less and self._same_of_equals:
                its_scores[:] = self._transformers(input_ids, scores[row : row + 1])[0]
                continue
            if less:
                torch.threshold_(its_scores, greatest, self.filter_value)
            if removed > less:
                its_scores.numpy()[np.flatnonzero(values[row] == np.float32(least))[: removed - less]] = (
                    self.filter_value
                )
        return cast("torch.FloatTensor", warped)

    def _transformers(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.FloatTensor:
        return cast("torch.FloatTensor", super().__call__(cast("torch.LongTensor", input_ids), scores))
