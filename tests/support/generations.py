"""The core of the API over a model of the tests, without a transport."""

from collections.abc import Sequence
from types import SimpleNamespace

from transformers import GenerationConfig

from gpu_service.api.generations import Generations
from gpu_service.engine.engine import Engine
from gpu_service.errors import QueueFullError
from gpu_service.settings import RequestLimits
from tests.support.counting_model import VOCAB


class NumberTokenizer:
    """Text is numbers between spaces; "broken" breaks it in a way that nothing foresees."""

    longest_token = 10
    only_grows = True

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        if text == "broken":
            raise RuntimeError("a secret")
        return [int(word) for word in text.split()]

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(f"{token_id} " for token_id in token_ids)

    def token_text(self, token_id: int) -> str:
        return str(token_id)

    def visible(self, token_ids: Sequence[int]) -> list[int]:
        return list(token_ids)

    def num_incomplete(self, token_ids: Sequence[int], text: str) -> int:
        return 0


def generations_of(engine: Engine, tokenizer: object, is_full: bool = False) -> Generations:
    """Generations that are ready."""

    def check_room(priority: int = 0, deadline: float | None = None) -> None:
        if is_full:
            raise QueueFullError("1 requests wait already")

    model = SimpleNamespace(
        vocab_size=VOCAB,
        max_context=10_000,
        eos_ids=frozenset(),
        generation_config=GenerationConfig(),  # type: ignore[no-untyped-call]
        start_token_id=None,
        forced_bos_token_id=None,
    )
    generations = Generations()
    generations.unavailable = ""
    generations.served = SimpleNamespace(  # type: ignore[assignment]
        engine=engine, model=model, tokenizer=tokenizer, limits=RequestLimits(), check_room=check_room
    )
    return generations
