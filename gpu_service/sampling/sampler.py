"""Chooses each row's next token. Logits processors are transformers'; random numbers are the generation's own."""

import secrets
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import cast

import torch
from transformers import (
    ForcedBOSTokenLogitsProcessor,
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TypicalLogitsWarper,
)

from gpu_service import logprobs
from gpu_service.drawing import draw
from gpu_service.logit_rows import largest, rows_of, with_rows
from gpu_service.logits_processors import OccurrencePenalties, TokenBias
from gpu_service.request import TokenLogprobs
from gpu_service.sampling_parameters import SamplingParameters
from gpu_service.top_p import TopP

WarperValues = tuple[float, int, float, float, float]

_CPU = torch.device("cpu")
_HISTORY_ROOM = 256  # tokens; doubled whenever it is full


def processors(
    parameters: SamplingParameters,
    prompt_length: int = 0,
    min_tokens: int = 0,
    end_ids: Collection[int] = (),
    device: torch.device = _CPU,
) -> list[LogitsProcessor]:
    """What changes logits before anything is drawn, in transformers' order.

    It holds no state of a row: all of a request's generations, or beams, share it.

    Args:
        parameters: What was asked.
        prompt_length: Tokens of the prompt, which the history that the processors are given begins with.
        min_tokens: How many tokens are made before one of end_ids may be.
        end_ids: Tokens that end the generation.
        device: Where the logits are.

    Raises:
        ValueError: A processor refuses its parameter.
    """
    chain: list[LogitsProcessor] = []
    if parameters.logit_bias:
        chain.append(TokenBias(parameters.logit_bias, device))
    if parameters.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(float(parameters.repetition_penalty)))
    if min_tokens > 0 and end_ids:
        ids = torch.tensor(sorted(end_ids), device=device)
        chain.append(MinNewTokensLengthLogitsProcessor(prompt_length, min_tokens, ids))
    if parameters.forced_bos_token_id is not None:
        chain.append(ForcedBOSTokenLogitsProcessor(parameters.forced_bos_token_id))
    if parameters.frequency_penalty or parameters.presence_penalty:
        chain.append(OccurrencePenalties(parameters.frequency_penalty, parameters.presence_penalty, prompt_length))
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


class History:
    """One generation's tokens, prompt first, on the device; it grows and is never built anew."""

    def __init__(self, prompt: Sequence[int], device: torch.device) -> None:
        self._prompt_length = self._length = len(prompt)
        self._tokens = torch.empty(len(prompt) + _HISTORY_ROOM, dtype=torch.int64, device=device)
        self._tokens[: len(prompt)] = torch.tensor(prompt, dtype=torch.int64)

    def read(self, output: Sequence[int]) -> torch.Tensor:
        """The prompt and the output, [1, tokens] int64. Appends what the output has more than last time."""
        total = self._prompt_length + len(output)
        while total > len(self._tokens):
            self._tokens = torch.cat([self._tokens, torch.empty_like(self._tokens)])
        for position in range(self._length, total):
            # a number, and not a tensor of one, goes to the device as an argument and waits for nothing
            self._tokens[position] = output[position - self._prompt_length]
        self._length = total
        return self._tokens[None, :total]


class Sampler:
    """One generation's way to choose a token: what transformers' generate() chooses with the same seed."""

    def __init__(
        self,
        parameters: SamplingParameters,
        index: int = 0,
        prompt: Sequence[int] = (),
        changes: Sequence[LogitsProcessor] = (),
        device: torch.device = _CPU,
        same_of_equals: bool = True,
    ) -> None:
        """Prepares the warpers.

        Args:
            parameters: What was asked.
            index: Which of the request's generations it is; it is seeded with seed + index.
            prompt: The prompt's tokens.
            changes: What `processors` makes of the same parameters and prompt.
            device: Where the logits are.
            same_of_equals: See TopP; the same for all samplers of a batch.

        Raises:
            ValueError: A warper refuses its parameter.
        """
        self._processors = list(changes)
        self._history = History(prompt, device) if self._processors else None
        self.generator: torch.Generator | None = None
        """What it draws with; None where it takes the likeliest token."""
        self.warper_values = _warper_values(parameters)
        """Samplers that have the same have the same warpers."""
        self.warpers: list[LogitsProcessor] = []
        if parameters.temperature == 0:
            return
        self.warpers = warpers(parameters, same_of_equals)
        self.generator = torch.Generator(device)
        self.generator.manual_seed(secrets.randbits(63) if parameters.seed is None else parameters.seed + index)

    @property
    def changes_logits(self) -> bool:
        """Whether `process` has something to do; what it has may end with a token."""
        return bool(self._processors)

    def process(self, logits: torch.Tensor, output: Sequence[int]) -> torch.Tensor:
        """[1, vocab] float32 and the tokens generated so far -> [1, vocab]: penalties, biases, what may not be yet."""
        if self._history is None:
            return logits
        scores = apply(self._processors, self._history.read(output), logits)
        self._forget_min_tokens(len(output) + 1)
        return scores

    def _forget_min_tokens(self, num_made: int) -> None:
        """Drops the processor that has nothing left to forbid."""
        self._processors = [
            each
            for each in self._processors
            if not isinstance(each, MinNewTokensLengthLogitsProcessor) or num_made < each.min_new_tokens
        ]
        self._history = self._history if self._processors else None


def sample(logits: torch.Tensor, samplers: Sequence[Sampler], outputs: Sequence[Sequence[int]]) -> list[int]:
    """Chooses one token for each row.

    Args:
        logits: [rows, vocab] float32.
        samplers: One for each row.
        outputs: What each row has generated so far.
    """
    return _choose(logits, samplers, outputs).tolist()  # the step's one wait for the device


def sample_with_logprobs(
    logits: torch.Tensor,
    samplers: Sequence[Sampler],
    outputs: Sequence[Sequence[int]],
    num_top: Sequence[int | None],
) -> list[TokenLogprobs]:
    """Chooses one token for each row, and tells its log probability; as `sample`, with one wait for the device.

    Args:
        logits: [rows, vocab] float32.
        samplers: One for each row.
        outputs: What each row has generated so far.
        num_top: How many alternatives each row wants to know; None where it wants no log probability.

    Returns:
        One for each row; without log probability where none is wanted.
    """
    tokens = _choose(logits, samplers, outputs)
    return logprobs.of_rows(logits, tokens, num_top)


def _choose(logits: torch.Tensor, samplers: Sequence[Sampler], outputs: Sequence[Sequence[int]]) -> torch.Tensor:
    """[rows, vocab] -> [rows] int64, on the device and without waiting for it."""
    processed = {
        row: sampler.process(logits[row : row + 1], outputs[row])
        for row, sampler in enumerate(samplers)
        if sampler.changes_logits
    }
    scores = with_rows(logits, processed)
    drawn: dict[WarperValues, list[int]] = defaultdict(list)
    for row, sampler in enumerate(samplers):
        if sampler.generator:
            drawn[sampler.warper_values].append(row)
    # rows that are warped alike go through together: each comes out as it would alone
    warped = [apply(samplers[rows[0]].warpers, None, rows_of(scores, rows)) for rows in drawn.values()]
    num_drawn = sum(map(len, drawn.values()))
    tokens = largest(scores) if num_drawn < len(samplers) else logits.new_empty(num_drawn, dtype=torch.int64)
    # last of all, so that whatever has failed has drawn nothing
    for rows, chosen in zip(drawn.values(), warped, strict=True):
        generators = [generator for row in rows if (generator := samplers[row].generator)]
        tokens[torch.tensor(rows, device=tokens.device)] = draw(torch.softmax(chosen, dim=-1), generators)
    return tokens
