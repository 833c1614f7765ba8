"""Logits processors that transformers lacks or computes slowly, and the chains of processors that a request needs."""

from collections.abc import Sequence
from typing import NamedTuple, cast

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

CPU = torch.device("cpu")


class OccurrencePenalties(LogitsProcessor):
    """OpenAI's penalties: logit - count * frequency_penalty - (count > 0) * presence_penalty.

    They count generated tokens and not the prompt, as OpenAI's do. transformers has no such processor.
    """

    def __init__(self, frequency_penalty: float, presence_penalty: float, preceding_length: int) -> None:
        self._frequency_penalty = frequency_penalty
        self._presence_penalty = presence_penalty
        self._preceding_length = preceding_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.FloatTensor:
        """[rows, tokens] int64 and [rows, vocab] -> [rows, vocab]."""
        generated = input_ids[:, self._preceding_length :]
        ones = torch.ones((), dtype=scores.dtype, device=scores.device).expand(generated.shape)
        counts = torch.zeros_like(scores).scatter_add_(1, generated, ones)
        penalties = self._frequency_penalty * counts + self._presence_penalty * (counts > 0)
        return cast("torch.FloatTensor", scores - penalties)


class TokenBias(LogitsProcessor):
    """Adds to the logits of single tokens, as transformers' SequenceBiasLogitsProcessor does for sequences of one.

    transformers' own visits each entry several times in Python: a quarter of a second for all of a large vocabulary,
    during which every other request waits.
    """

    def __init__(self, biases: Sequence[tuple[int, float]], device: torch.device) -> None:
        """Takes (token id, what is added to its logit), no id twice."""
        self._ids = torch.tensor([token_id for token_id, _ in biases], device=device)
        self._biases = torch.tensor([bias for _, bias in biases], dtype=torch.float32, device=device)

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.FloatTensor:
        """[rows, vocab] -> [rows, vocab]."""
        return cast("torch.FloatTensor", scores.index_add(1, self._ids, self._biases.expand(len(scores), -1)))


class TopP(TopPLogitsWarper):
    """TopPLogitsWarper, faster: numpy sorts and torch cuts off, both with vector instructions."""

    def __init__(self, top_p: float, same_of_equals: bool = True) -> None:
        """Creates the warper.

        Args:
            top_p: The least probability of all tokens that are kept, taken together.
            same_of_equals: Whether to keep the same tokens of equal logits as transformers does, which takes longer.
        """
        super().__init__(top_p)
        self._same_of_equals = same_of_equals

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.FloatTensor:
        """[rows, vocab] -> [rows, vocab], with -inf for every token that is not among the likeliest."""
        if scores.device.type != "cpu" or scores.dtype is not torch.float32:
            return self._transformers(input_ids, scores)
        values = scores.numpy()
        ordered = torch.from_numpy(np.sort(values, axis=-1))
        # as transformers computes them, on the same values in the same order; sums of positive numbers only grow
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


class Warping(NamedTuple):
    """What shapes the distribution that a token is drawn from. Rows with equal warpings are warped together.

    `warpers` reads this object and nothing else, so an option that it uses is always part of the comparison. It is a
    tuple rather than a dataclass because every row is hashed at every step, which takes a dataclass twice as long.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float

    @classmethod
    def of(cls, parameters: SamplingParameters) -> "Warping":
        """The warping that a request asks for."""
        return cls(*(getattr(parameters, name) for name in cls._fields))

    def warpers(self, same_of_equals: bool = True) -> list[LogitsProcessor]:
        """The processors that do it, in transformers' order; see TopP for `same_of_equals`.

        Raises:
            ValueError: A warper refuses its parameter.
        """
        chain: list[LogitsProcessor] = []
        if self.temperature != 1:
            chain.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k > 0:
            chain.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            chain.append(TopP(self.top_p, same_of_equals))
        if self.min_p > 0:
            chain.append(MinPLogitsWarper(self.min_p))
        if self.typical_p < 1:
            chain.append(TypicalLogitsWarper(self.typical_p))
        return chain


def processors(
    parameters: SamplingParameters,
    ending: Ending | None = None,
    *,
    preceding_length: int = 0,
    device: torch.device = CPU,
) -> list[LogitsProcessor]:
    """The processors that change logits before anything is drawn, in transformers' order.

    They hold no state of a row: all generations or beams of a request share them.

    Args:
        parameters: What was asked.
        ending: When a generation ends; None: no token is ruled out.
        preceding_length: Tokens at the start of the history that were not generated.
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


def apply(chain: Sequence[LogitsProcessor], history: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
    """[rows, tokens] int64 and [rows, vocab] -> [rows, vocab]."""
    for processor in chain:  # transformers' LogitsProcessorList inspects each signature at every call
        scores = processor(cast("torch.LongTensor", history), cast("torch.FloatTensor", scores))
    return scores
