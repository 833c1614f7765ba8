"""Stop texts through real services: a generation ends where transformers ends it, its text before the stop text."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from fiddler.v1 import generation_pb2
from gpu_service.text.tokenizer import Tokenizer
from pair import Pair
from tests.support import reference
from tests.support.calls import Stub, connect, generate, generate_one, sampling

PROMPT = [5, 9, 11, 40]
NUM_TOKENS = 40


@pytest.fixture(scope="module")
def stub(pair: Pair) -> Iterator[Stub]:
    with connect(pair.target) as stub:
        yield stub


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Tokenizer:
    return Tokenizer(tiny)


@pytest.fixture(scope="module")
def text(stub: Stub) -> str:
    """What the model generates."""
    return generate_one(stub, PROMPT, max_tokens=NUM_TOKENS, sampling=sampling(temperature=0)).text


def _slices(text: str) -> list[str]:
    """Parts of it of several lengths, from all over it, in whole characters."""
    slices = [text[begin : begin + 1 + begin % 5] for begin in range(1, len(text) - 5, 3)]
    return list(dict.fromkeys(each for each in slices if "\ufffd" not in each))[:14]


def test_a_generation_ends_with_the_token_at_which_transformers_ends_it(
    stub: Stub, text: str, tiny: Path, tokenizer: Tokenizer
) -> None:
    model, theirs = reference.load(tiny), AutoTokenizer.from_pretrained(tiny)
    stops = [[each, "no such text"] for each in _slices(text)]
    assert len(stops) > 5

    def end(stop: list[str]) -> Any:
        parameters = sampling(temperature=0)
        return generate_one(stub, PROMPT, max_tokens=NUM_TOKENS, stop=stop, sampling=parameters)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(end, stops))
    for stop, answer in zip(stops, answers, strict=True):
        config = GenerationConfig(max_new_tokens=NUM_TOKENS, stop_strings=stop)  # type: ignore[no-untyped-call]
        output = model.generate(torch.tensor([PROMPT]), generation_config=config, tokenizer=theirs)
        assert answer.token_ids == output[0, len(PROMPT) :].tolist()
        assert answer.complete.finish_reason == generation_pb2.FINISH_REASON_STOP
        assert answer.complete.stop == stop[0]
        decoded = tokenizer.decode(answer.token_ids)
        assert answer.text == decoded[: decoded.find(stop[0])]


def test_the_stop_text_is_kept_on_demand_and_what_comes_after_it_never(stub: Stub, text: str) -> None:
    for stop in _slices(text)[:4]:
        parameters = sampling(temperature=0)
        fields = {"max_tokens": NUM_TOKENS, "stop": [stop], "sampling": parameters}
        trimmed = generate_one(stub, PROMPT, **fields)
        kept = generate_one(stub, PROMPT, include_stop_in_output=True, **fields)
        assert kept.text == trimmed.text + stop
        assert kept.token_ids == trimmed.token_ids
        assert trimmed.complete.usage.completion_tokens == len(trimmed.token_ids)


def test_text_that_only_begins_like_a_stop_text_is_sent_all_the_same(stub: Stub, text: str) -> None:
    stops = [each + "\0" for each in _slices(text)]
    answer = generate_one(stub, PROMPT, max_tokens=NUM_TOKENS, stop=stops, sampling=sampling(temperature=0))
    assert answer.text == text
    assert answer.complete.finish_reason == generation_pb2.FINISH_REASON_LENGTH
    assert not answer.complete.HasField("stop")
    assert sum(map(bool, answer.pieces)) > NUM_TOKENS / 4, "and not all of it at the end"


def test_each_generation_of_n_ends_by_itself(stub: Stub) -> None:
    parameters = sampling(temperature=1, seed=3)
    free = generate(stub, PROMPT, max_tokens=NUM_TOKENS, n=4, sampling=parameters)
    stop = [next(each for each in free.answers[index].text[8:] if each != "\ufffd") for index in range(4)]
    ended = generate(stub, PROMPT, max_tokens=NUM_TOKENS, n=4, stop=stop, sampling=parameters)
    for index in range(4):
        found = min((place, each) for each in set(stop) if (place := free.answers[index].text.find(each)) >= 0)
        assert ended.answers[index].text == free.answers[index].text[: found[0]]
        assert ended.answers[index].complete.stop == found[1]


def test_no_stop_text_ends_a_generation_before_min_tokens(stub: Stub, text: str) -> None:
    stop = _slices(text)[0]
    fields: dict[str, Any] = {"max_tokens": NUM_TOKENS, "stop": [stop], "sampling": sampling(temperature=0)}
    early = generate_one(stub, PROMPT, **fields)
    late = generate_one(stub, PROMPT, min_tokens=len(early.token_ids) + 1, **fields)
    assert stop in late.text
    assert text.startswith(late.text)
    assert len(late.token_ids) > len(early.token_ids)
    same = generate_one(stub, PROMPT, min_tokens=len(early.token_ids), **fields)
    assert same.token_ids == early.token_ids
