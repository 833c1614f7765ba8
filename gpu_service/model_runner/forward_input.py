"""What one forward computes. Plain values between the scheduler and the model, without torch."""

import enum


class Logits(enum.Enum):
    """Which tokens of a batch need logits."""

    NONE = enum.auto()
    """A chunk within a prompt."""
    LAST = enum.auto()
    """Each sequence's last, which says its next token."""
    ALL = enum.auto()
    """Of a prompt whose log probabilities were asked for."""
