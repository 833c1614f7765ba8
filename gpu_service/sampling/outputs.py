"""What sampling and beam search return: tokens with log probabilities, and why a generation ends. Imports no torch."""

import enum
from dataclasses import KW_ONLY, dataclass


class FinishReason(enum.Enum):
    """Why a generation ended."""

    EOS = "eos"
    LENGTH = "length"
    STOP = "stop"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class Ending:
    """When a generation ends by its own tokens. Stop texts are found by `text.stop_strings`."""

    max_tokens: int
    _: KW_ONLY
    eos_ids: frozenset[int] = frozenset()
    """Empty if the model's end tokens are to be ignored."""
    stop_ids: frozenset[int] = frozenset()
    """Further tokens that end it."""
    min_tokens: int = 0
    """Tokens before which a logits processor rules out `end_ids`."""

    @property
    def end_ids(self) -> frozenset[int]:
        """All tokens that end it."""
        return self.eos_ids | self.stop_ids

    def reason(self, token_id: int, num_tokens: int) -> FinishReason | None:
        """Why a generation of `num_tokens` tokens ends with its last one, `token_id`; None if it does not."""
        if token_id in self.eos_ids:
            return FinishReason.EOS
        if token_id in self.stop_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if num_tokens >= self.max_tokens else None


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token's log probability and the likeliest tokens in its place."""

    token_id: int
    logprob: float | None
    """None for a prompt's first token."""
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log probability), likeliest first."""
