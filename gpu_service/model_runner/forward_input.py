"""What one forward computes. Plain values between the scheduler and the model, without torch."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Logits(enum.Enum):
    """Which tokens of a batch need logits."""

    NONE = enum.auto()
    """A chunk within a prompt."""
    LAST = enum.auto()
    """Each sequence's last, which says its next token."""
    ALL = enum.auto()
    """Of a prompt whose log probabilities were asked for."""


@dataclass(frozen=True, slots=True)
class Span:
    """Adjacent tokens of one sequence: a prompt, a piece of one, or the token that a sequence decodes."""

    row: int
    """The cache's row of the sequence."""
    start: int
    """The position of the first token."""
    token_ids: Sequence[int]
    length: int
    """Of the sequence as a whole; see `RopeAngles.of`."""
    logits: Logits = Logits.LAST

    @property
    def stop(self) -> int:
        """The position after the last token."""
        return self.start + len(self.token_ids)

    @property
    def num_logits(self) -> int:
        """Tokens whose logits are computed, the last ones of the span."""
        return {Logits.NONE: 0, Logits.LAST: 1, Logits.ALL: len(self.token_ids)}[self.logits]


def is_rectangle(spans: Sequence[Span]) -> bool:
    """Whether spans are one piece of one sequence, or one token each of sequences in adjacent rows."""
    first = spans[0]
    return all(
        len(span.token_ids) == 1 == len(first.token_ids)
        and span.row == first.row + number
        and span.logits is first.logits
        for number, span in enumerate(spans[1:], 1)
    )
