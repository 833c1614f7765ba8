"""What one request may ask for at most, as it is configured. What each value bounds is in generation.proto."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Bounds on one request, besides those of the model's own context and vocabulary."""

    max_tokens: int | None = None
    """None: what the context leaves room for."""
    max_n: int = 16
    max_beams: int = 16
    max_stop_strings: int = 16
    max_stop_bytes: int = 1024
    """Of one stop string, in UTF-8."""
    max_logprobs: int = 20
    """Alternatives at each place."""
