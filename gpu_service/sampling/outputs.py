"""What sampling and beam search return: tokens with their log probabilities, and why a generation ends."""

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class FinishReason(enum.Enum):
    """Why a generation ended."""

    EOS = "eos"
    LENGTH = "length"
    STOP = "stop"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token's log probability and the likeliest tokens in its place."""

    token_id: int
    logprob: float | None
    """None for a prompt's first token."""
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log probability), likeliest first."""
