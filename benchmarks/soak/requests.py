"""The requests of a soak, of every kind, and their results."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from client import AsyncClient, BestBeam, ChatMessage, Complete, Event, GenerateOptions, GenerationChunk
from client.async_client import AsyncGeneration

_TOKENS = range(3, 250)  # every vocabulary has them
_NUM_OF_EACH = 3

Result = tuple[tuple[object, ...], ...]
"""What a request's generations are: the index, the token ids, the text and the reason of the end of each."""


@dataclass(frozen=True, slots=True)
class SoakRequest:
    """A request that always has the same result."""

    kind: str
    send: Callable[[AsyncClient, float | None], AsyncGeneration]
    """Sends it, with a timeout in seconds."""


def requests(seed: int, has_chat: bool) -> list[SoakRequest]:
    """Several requests of each kind: greedy, sampled, several generations, beams, stop texts, log probabilities, chat.

    Args:
        seed: Of the prompts.
        has_chat: Whether the model has a chat template.
    """
    chance = random.Random(seed)
    made = []
    for number in range(_NUM_OF_EACH):
        length = chance.choice((4, 20, 90))
        prompt = chance.choices(_TOKENS, k=length)
        for kind, options in _kinds(number).items():
            made.append(SoakRequest(kind, _generation(prompt, options)))
        if has_chat:
            messages: list[ChatMessage] = [{"role": "user", "content": f"Tell me story {number + 3} of the sea."}]
            made.append(SoakRequest("chat", _chat(messages)))
    return made


def _kinds(number: int) -> dict[str, GenerateOptions]:
    draw: GenerateOptions = {"temperature": 0.8, "seed": 100 + number}
    return {
        "greedy": {"max_tokens": 48, "temperature": 0},
        "sampled": {"max_tokens": 32, **draw, "top_p": 0.9, "repetition_penalty": 1.1},
        "several": {"max_tokens": 16, **draw, "n": 3, "top_k": 20},
        "beams": {"max_tokens": 12, "num_beams": 4, "num_return_sequences": 2},
        "stops": {"max_tokens": 48, **draw, "stop": ["e", "th"]},
        "logprobs": {"max_tokens": 16, "temperature": 0, "logprobs": 3, "prompt_logprobs": 1},
    }


def _generation(prompt: list[int], options: GenerateOptions) -> Callable[[AsyncClient, float | None], AsyncGeneration]:
    def send(client: AsyncClient, timeout: float | None) -> AsyncGeneration:
        timed: GenerateOptions = {**options, "ignore_eos": True, "timeout": timeout}
        return client.generate(prompt, **timed)

    return send


def _chat(messages: list[ChatMessage]) -> Callable[[AsyncClient, float | None], AsyncGeneration]:
    return lambda client, timeout: client.chat(messages, max_tokens=24, temperature=0, timeout=timeout)


class Collector:
    """Puts a request's events together."""

    def __init__(self) -> None:
        """Nothing has arrived."""
        self._tokens: dict[int, list[int]] = {}
        self._texts: dict[int, str] = {}
        self._ends: dict[int, object] = {}

    def add(self, event: Event) -> None:
        """Adds an event."""
        if isinstance(event, GenerationChunk):
            self._tokens.setdefault(event.index, []).extend(event.token_ids)
            self._texts[event.index] = self._texts.get(event.index, "") + event.text
        elif isinstance(event, Complete):
            self._ends[event.index] = event.finish_reason
            if event.token_ids:
                self._tokens[event.index], self._texts[event.index] = list(event.token_ids), event.text or ""
        else:
            assert not isinstance(event, BestBeam), "none was asked for"

    def result(self) -> Result:
        """The generations, by index."""
        return tuple(
            (index, tuple(self._tokens.get(index, ())), self._texts.get(index, ""), end)
            for index, end in sorted(self._ends.items())
        )
