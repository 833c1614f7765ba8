"""Chooses the next token of each row. Logits processors are transformers'; random numbers are the generation's own."""

import math
import secrets
from collections import defaultdict
from collections.abc import Sequence

import torch
from transformers import LogitsProcessor, MinNewTokensLengthLogitsProcessor

from gpu_service.errors import NonFiniteError, panics_as_errors
from gpu_service.sampling import logprobs
from gpu_service.sampling.constraint import Constraint
from gpu_service.sampling.logits import (
    index_of,
    largest,
    non_finite_rows,
    rows_of,
    sums_of,
    to_device,
    with_rows,
)
from gpu_service.sampling.logits_processors import CPU, Warping, apply
from gpu_service.sampling.multinomial import draw
from gpu_service.sampling.outputs import TokenLogprobs
from gpu_service.sampling.parameters import SamplingParameters

NON_FINITE = "the model computed a number that is not finite"
_HISTORY_ROOM = 256  # tokens; doubled whenever it is full


class History:
    """The tokens of one generation on the device, those that it continues first. It grows and is never rebuilt."""

    def __init__(self, preceding: Sequence[int], device: torch.device) -> None:
        self._preceding_length = self._length = len(preceding)
        self._tokens = torch.empty(len(preceding) + _HISTORY_ROOM, dtype=torch.int64, device=device)
        self._tokens[: len(preceding)] = torch.tensor(preceding, dtype=torch.int64)

    def read(self, output: Sequence[int]) -> torch.Tensor:
        """The preceding tokens and the output, [1, tokens] int64. Appends the tokens that are new in the output."""
        total = self._preceding_length + len(output)
        while total > len(self._tokens):
            self._tokens = torch.cat([self._tokens, torch.empty_like(self._tokens)])
        for position in range(self._length, total):
            # fill_ sends the number as an argument of its kernel; an assignment would copy it, and the host would wait
            self._tokens[position : position + 1].fill_(output[position - self._preceding_length])
        self._length = total
        return self._tokens[None, :total]


class Sampler:
    """How one generation chooses its tokens: what transformers' generate() chooses with the same seed."""

    def __init__(
        self,
        parameters: SamplingParameters,
        *,
        index: int = 0,
        preceding: Sequence[int] = (),
        processors: Sequence[LogitsProcessor] = (),
        device: torch.device = CPU,
        same_of_equals: bool = True,
        constraint: Constraint | None = None,
    ) -> None:
        """Prepares the warpers and seeds the generator.

        Args:
            parameters: What was asked.
            index: The index of the generation within its request; it is seeded with seed + index.
            preceding: The tokens that the generation continues.
            processors: What `logits_processors.processors` builds of the same parameters and preceding tokens.
            device: The device of the logits.
            same_of_equals: See TopP; the same for all samplers of a batch.
            constraint: Rules out tokens. Its owner tells it which were chosen.

        Raises:
            ValueError: A warper refuses its parameter.
        """
        self._processors = list(processors)
        self._history = History(preceding, device) if self._processors else None
        self._constraint = constraint
        self.generator: torch.Generator | None = None
        """What it draws with; None if it takes the likeliest token."""
        self.warping = Warping.of(parameters)
        self.warpers: list[LogitsProcessor] = []
        if parameters.temperature == 0:
            return
        self.warpers = self.warping.warpers(same_of_equals)
        self.generator = torch.Generator(device)
        self.generator.manual_seed(secrets.randbits(63) if parameters.seed is None else parameters.seed + index)

    @property
    def changes_logits(self) -> bool:
        """Whether `process` changes anything. It may stop doing so after some tokens."""
        return bool(self._processors) or self._constraint is not None

    @property
    def forced(self) -> int | None:
        """The token that comes next, if there is no choice."""
        return None if self._constraint is None else self._constraint.forced

    def process(self, logits: torch.Tensor, output: Sequence[int]) -> torch.Tensor:
        """Applies penalties and biases, and rules out what may not come yet.

        Args:
            logits: [1, vocab] float32.
            output: The tokens generated so far.

        Returns:
            [1, vocab].
        """
        scores = logits
        if self._history is not None:
            scores = apply(self._processors, self._history.read(output), logits)
            self._forget_min_tokens(len(output) + 1)
        if self._constraint is not None and self._constraint.forced is None:
            allowed, is_end = self._constraint.allowed()
            scores = (logits if is_end else scores).masked_fill(~to_device(allowed, logits.device), -torch.inf)
        return scores

    def _forget_min_tokens(self, num_made: int) -> None:
        """Drops the processor that has nothing left to rule out."""
        self._processors = [
            each
            for each in self._processors
            if not isinstance(each, MinNewTokensLengthLogitsProcessor) or num_made < each.min_new_tokens
        ]
        self._history = self._history if self._processors else None


def choose(
    logits: torch.Tensor,
    samplers: Sequence[Sampler],
    outputs: Sequence[Sequence[int]],
    *,
    num_top: Sequence[int | None],
) -> list[TokenLogprobs | Exception]:
    """Chooses the next token of each row, with one wait for the device.

    Args:
        logits: [rows, vocab] float32.
        samplers: One for each row.
        outputs: The tokens that each row has generated so far.
        num_top: How many alternatives each row wants log probabilities of; None if it wants no log probability at all.

    Returns:
        For each row its token, or what its own sampler raised; NonFiniteError if its logits are not finite.
    """
    try:
        with panics_as_errors():
            # the sums come with the tokens: asking for them first would be a wait of its own
            told = torch.cat(
                [
                    sums_of(logits).double()[:, None],
                    logprobs.columns(logits, _choose(logits, samplers, outputs), num_top),
                ],
                dim=1,
            )
            return [_outcome(row, wanted) for row, wanted in zip(told.tolist(), num_top, strict=True)]
    except torch.AcceleratorError:
        raise
    except Exception as error:
        if len(samplers) == 1:
            return [NonFiniteError(NON_FINITE) if non_finite_rows(logits) else error]
    # One row raised. Retry row by row: safe, because a sampler draws only after everything that can raise.
    return [
        choose(logits[row : row + 1], [sampler], [outputs[row]], num_top=[num_top[row]])[0]
        for row, sampler in enumerate(samplers)
    ]


def _outcome(row: list[float], num_top: int | None) -> TokenLogprobs | Exception:
    """Reads [the sum of the logits, what `logprobs.read` reads]."""
    return logprobs.read(row[1:], num_top) if math.isfinite(row[0]) else NonFiniteError(NON_FINITE)


def _choose(logits: torch.Tensor, samplers: Sequence[Sampler], outputs: Sequence[Sequence[int]]) -> torch.Tensor:
    """[rows, vocab] -> [rows] int64, on the device and without waiting for it."""
    processed = {
        row: sampler.process(logits[row : row + 1], outputs[row])
        for row, sampler in enumerate(samplers)
        if sampler.changes_logits
    }
    scores = with_rows(logits, processed)
    forced = {row: token_id for row, sampler in enumerate(samplers) if (token_id := sampler.forced) is not None}
    groups: dict[Warping, list[int]] = defaultdict(list)
    for row, sampler in enumerate(samplers):
        if sampler.generator and row not in forced:
            groups[sampler.warping].append(row)
    # rows of equal warpings are computed together; each comes out as it would alone
    warped = [apply(samplers[rows[0]].warpers, None, rows_of(scores, rows)) for rows in groups.values()]
    num_drawn = sum(map(len, groups.values()))
    tokens = largest(scores) if num_drawn < len(samplers) else logits.new_empty(num_drawn, dtype=torch.int64)
    # draw last, so that no generator has moved on if anything above raises
    for rows, chosen in zip(groups.values(), warped, strict=True):
        generators = [generator for row in rows if (generator := samplers[row].generator)]
        tokens[index_of(rows, tokens.device)] = draw(torch.softmax(chosen, dim=-1), generators)
    for row, token_id in forced.items():
        tokens[row : row + 1].fill_(token_id)  # not assigned: see History
    return tokens
