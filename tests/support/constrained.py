"""A model of random logits over the demo tokenizer's vocabulary, and requests with constraints."""

from collections.abc import Sequence
from typing import Any

import torch
from typing_extensions import override

from fiddler.v1.generation_pb2 import GenerateRequest, TokenIds
from gpu_service.api.requests.constraints import constraint_of
from gpu_service.engine.events import Event, Finished, Token
from gpu_service.engine.request_ids import RequestIds
from gpu_service.engine.stepper import Stepper
from gpu_service.model_runner.forward_input import Span
from gpu_service.settings import RequestLimits
from gpu_service.text.tokenizer import Tokenizer
from tests.support.counting_model import CountingModel, Reader
from tests.support.pairs import DEMO

TOKENIZER = Tokenizer(DEMO)
VOCAB = 3072
EOS = 2


class RandomModel(CountingModel):
    """The logits depend on the latest token and its position alone, and not on what is computed beside it."""

    vocab_size = VOCAB
    eos_ids = frozenset({EOS})
    start_token_id: int | None = None

    @override
    def compute(self, spans: Sequence[Span]) -> torch.Tensor:
        self.steps += 1
        pairs = [
            pair
            for span in spans
            for pair in list(zip(span.token_ids, range(span.start, span.stop), strict=True))[
                len(span.token_ids) - span.num_logits :
            ]
        ]
        rows = [torch.randn(VOCAB, generator=torch.Generator().manual_seed(one * 4099 + other)) for one, other in pairs]
        return torch.stack(rows) if rows else torch.empty(0, VOCAB)


def reader_of(prompt: str = "It was", max_tokens: int = 300, *, constraint: dict[str, Any], **fields: Any) -> Reader:
    """A request with a constraint; further fields are those of Reader."""
    message = GenerateRequest(token_ids=TokenIds(ids=[1]), **constraint)
    model: Any = RandomModel()
    grammar = constraint_of(message, model, TOKENIZER, RequestLimits())
    return Reader(TOKENIZER.encode(prompt), max_tokens, EOS, grammar=grammar, **fields)


class Steps:
    """An engine without its thread."""

    def __init__(self, max_slots: int = 8, runs_ahead: bool = True) -> None:
        self.model = RandomModel()
        self.scheduler = self.model.scheduler(max_slots, max_waiting=64)
        self.scheduler._runs_ahead &= runs_ahead
        self.stepper = Stepper(self.model, self.scheduler, ids=RequestIds(), on_failure=_raise)  # type: ignore[arg-type]

    def run(self, *readers: Reader) -> list[list[Event]]:
        """The events of each, once all have ended."""
        for reader in readers:
            self.stepper.add(reader.answer)
        while self.stepper.step():
            pass
        assert (self.scheduler.num_running, self.scheduler.used_rows) == (0, 0)
        return [reader.all() for reader in readers]


def tokens_of(events: list[Event], index: int = 0) -> list[int]:
    """The tokens of a generation."""
    return [event.token_id for event in events if isinstance(event, Token) and event.index == index]


def end_of(events: list[Event], index: int = 0) -> Finished:
    """How a generation ended."""
    (end,) = (event for event in events if isinstance(event, Finished) and event.index == index)
    return end


def text_of(events: list[Event], index: int = 0) -> str:
    """The text of a generation, as it follows other text."""
    return b"".join(TOKENIZER.token_bytes(each) or b"" for each in tokens_of(events, index) if each != EOS).decode()


def _raise(error: Exception) -> None:
    raise error
