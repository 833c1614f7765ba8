"""What a caller asks for. Imports no torch."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpu_service.engine.events import Event
from gpu_service.sampling.outputs import Ending
from gpu_service.sampling.parameters import BeamParameters, SamplingParameters

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from gpu_service.text.stop_strings import StopStrings

_numbers = itertools.count(1)


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Request:
    """What a caller asks for. How far it is computed is an `Answer`. Two requests are never equal."""

    prompt: Sequence[int]
    sampling: SamplingParameters
    ending: Ending
    emit: Callable[[Event], None]
    """Called from the engine's thread; must not block."""
    stop: "StopStrings | None" = None
    grammar: "LLMatcher | None" = None
    """What the output must be, at its beginning."""
    n: int = 1
    beam: BeamParameters | None = None
    logprobs: int | None = None
    """How many alternatives; None: no log probabilities."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens."""
    priority: int = 0
    """Requests of higher priority start first."""
    deadline: float | None = None
    """When the caller leaves, on the clock of time.monotonic(); None: never."""
    start_token_id: int | None = None
    """The token that the output begins with if the prompt is the input of an encoder."""
    is_open_ended: bool = False
    """Whether the caller asked for no number of tokens, so that ending.max_tokens is only what there is room for."""
    reports_progress: bool = False
    """Whether to report how far the prompt is computed."""
    request_id: str = ""
    number: int = field(default_factory=lambda: next(_numbers))
    """Requests of equal priority start in this order."""

    @property
    def preceding(self) -> Sequence[int]:
        """The tokens that the output continues, which penalties count: the prompt, or a decoder's start token."""
        return self.prompt if self.start_token_id is None else [self.start_token_id]

    @property
    def num_rows(self) -> int:
        """KV rows that it needs: one for each generation or beam."""
        return self.n if self.beam is None else self.beam.num_beams

    @property
    def max_length(self) -> int:
        """The most tokens that one of its KV rows may hold."""
        return len(self.prompt) + self.ending.max_tokens

    @property
    def least_tokens(self) -> int:
        """The tokens that its caller expects: 1 if it asked for no number."""
        return 1 if self.is_open_ended else self.ending.max_tokens

    @property
    def grows(self) -> bool:
        """Whether memory is reserved for its output as that grows, rather than for max_length at once.

        Only if it can be computed again from its tokens, should there be no memory left to grow into.
        """
        return self.is_open_ended and self.num_rows == 1 and self.beam is None and self.start_token_id is None
