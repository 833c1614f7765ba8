"""What one forward computes. Plain values between the scheduler and the model; torch is not imported here."""

import enum
from dataclasses import dataclass

from gpu_service.request import Request, Sequence


class Logits(enum.Enum):
    """Which tokens of a batch need logits."""

    NONE = enum.auto()
    """A chunk within a prompt."""
    LAST = enum.auto()
    """Each sequence's last, which says its next token."""
    ALL = enum.auto()
    """Of a prompt whose log probabilities were asked for."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward computes: sequences in adjacent rows, each with as many tokens as the others."""

    sequences: tuple[Sequence, ...]
    first_row: int
    token_ids: list[list[int]]
    """[sequences, tokens]"""
    start: list[int]
    """[sequences]: the position of the first token of each."""
    logits: Logits
    ends_prompt: bool = False
    """Whether a prompt is computed with it, so that its sequences decode from then on."""
    is_prompt: bool = False

    @property
    def requests(self) -> list[Request]:
        """Whose sequences they are."""
        return list(dict.fromkeys(sequence.request for sequence in self.sequences))
