"""One generation of a request, and the batches that generations are computed in."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpu_service.engine.request import Finished, Request
from gpu_service.model_runner.forward_input import Logits
from gpu_service.sampling.outputs import FinishReason

if TYPE_CHECKING:
    from gpu_service.sampling.sampler import Sampler
    from gpu_service.text.stop_strings import StopMatcher


@dataclass(eq=False, slots=True)
class Sequence:
    """One generation of a request, or one of its beams: a row of the cache. Only the engine's thread touches it."""

    request: "Request"
    index: int
    sampler: "Sampler | None" = None
    """None for a beam."""
    matcher: "StopMatcher | None" = None
    output: list[int] = field(default_factory=list)
    num_computed: int = 0
    """Tokens whose keys and values are in the cache."""
    row: int = -1
    """Of the cache; -1 where it has none."""
    is_finished: bool = False
    last_token_at: float | None = None

    def finished(self, reason: FinishReason, stop: str | None = None) -> Finished:
        """Its last event."""
        return Finished(
            self.index,
            reason,
            len(self.output),
            *self.request.stage_seconds(self.last_token_at),
            cached_prompt_tokens=self.request.cached_prompt_tokens,
            stop=stop,
        )


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
