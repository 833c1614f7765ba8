from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from fiddler.v1 import generation_pb2
from fiddler.v1.generation_pb2 import GenerateRequest, GenerateResponse
from gpu_service.api.responses import Responses
from gpu_service.engine.events import Best, Event, Failed, Finished, Progress, Prompt, Token
from gpu_service.errors import ComputationError
from gpu_service.sampling.outputs import FinishReason, TokenLogprobs
from gpu_service.sampling.parameters import BeamParameters
from gpu_service.text.stop_strings import StopStrings
from gpu_service.text.tokenizer import Tokenizer
from tests.support.pairs import DEMO
from tests.support.requests import request_of


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return Tokenizer(DEMO)


def _responses(
    tokenizer: Tokenizer, prompt: str = "It was", message: GenerateRequest | None = None, **fields: Any
) -> Responses:
    return Responses(request_of(tokenizer.encode(prompt), 10, **fields), message or GenerateRequest(), tokenizer)


def _end(index: int = 0, reason: FinishReason = FinishReason.LENGTH, **fields: Any) -> Finished:
    return Finished(index, reason, 2, 1.0, 2.0, 3.0, **fields)


def _tokens(tokenizer: Tokenizer, text: str, index: int = 0) -> list[Event]:
    return [Token(index, token_id) for token_id in tokenizer.encode(text, add_special_tokens=False)]


def _chunks(messages: list[GenerateResponse], index: int = 0) -> list[generation_pb2.Chunk]:
    return [each.chunk for each in messages if each.HasField("chunk") and each.chunk.index == index]


def test_tokens_that_come_together_share_a_message_and_the_end_is_last(demo: Tokenizer) -> None:
    responses = _responses(demo)
    tokens = _tokens(demo, " a fine morning")
    first, second, end = [*responses.of(tokens[:2]), *responses.of([*tokens[2:], _end(cached_prompt_tokens=1)])]
    assert [*first.chunk.token_ids, *second.chunk.token_ids] == [token.token_id for token in tokens]  # type: ignore[union-attr]
    assert first.chunk.text + second.chunk.text == demo.decode(first.chunk.token_ids) + demo.decode(
        second.chunk.token_ids
    )
    assert MessageToDict(end) == {
        "complete": {
            "finishReason": "FINISH_REASON_LENGTH",
            "usage": {"promptTokens": 3, "completionTokens": 2, "cachedPromptTokens": 1},
            "timings": {"queueSeconds": 1.0, "prefillSeconds": 2.0, "decodeSeconds": 3.0},
        }
    }
    assert (responses.num_unfinished, responses.num_tokens) == (0, len(tokens))


def test_generations_are_told_apart_by_their_index(demo: Tokenizer) -> None:
    responses = _responses(demo, n=2)
    ones, others = _tokens(demo, " a fine", 0), _tokens(demo, " the king", 1)
    mixed = [event for pair in zip(ones, others, strict=False) for event in pair]
    messages = [*responses.of([*mixed, _end(1)])]
    assert responses.num_unfinished == 1
    messages += [*responses.of([_end(0, FinishReason.EOS)])]
    assert responses.num_unfinished == 0
    for index, text in enumerate([" a fine", " the king"]):
        assert "".join(chunk.text for chunk in _chunks(messages, index)) in text
        assert len(_chunks(messages, index)) == 1
    ends = [each.complete for each in messages if each.HasField("complete")]
    assert [(end.index, end.finish_reason) for end in ends] == [
        (1, generation_pb2.FINISH_REASON_LENGTH),
        (0, generation_pb2.FINISH_REASON_EOS),
    ]
    assert responses.finish_reasons == {FinishReason.LENGTH: 1, FinishReason.EOS: 1}


def test_log_probabilities_have_the_tokens_texts(demo: Tokenizer) -> None:
    responses = _responses(demo)
    (token,) = demo.encode(" the", add_special_tokens=False)
    (message,) = responses.of([Token(0, token, TokenLogprobs(token, -0.5, ((token, -0.5), (1, -2.0))))])
    (logprobs,) = message.chunk.logprobs
    assert (logprobs.token_id, logprobs.logprob, logprobs.text) == (token, -0.5, " the")
    assert [(each.token_id, each.logprob, each.text) for each in logprobs.top] == [
        (token, -0.5, " the"),
        (1, -2.0, "<s>"),
    ]


def test_an_echo_comes_before_anything_is_computed(demo: Tokenizer) -> None:
    responses = _responses(demo, message=GenerateRequest(echo=True), n=2)
    messages = list(responses.begin())
    assert [(each.chunk.index, list(each.chunk.token_ids), each.chunk.text) for each in messages] == [
        (index, demo.encode("It was"), "It was") for index in range(2)
    ]
    messages += [*responses.of([*_tokens(demo, " a fine"), _end()])]
    assert "".join(chunk.text for chunk in _chunks(messages)) == "It was a fine"


def test_a_prompts_log_probabilities_come_before_its_echo_and_in_parts(demo: Tokenizer) -> None:
    prompt = "It was" + " a fine morning" * 200
    responses = _responses(demo, prompt, GenerateRequest(echo=True), prompt_logprobs=1)
    ids = demo.encode(prompt)
    assert list(responses.begin()) == []
    entries = [TokenLogprobs(ids[0], None), *(TokenLogprobs(each, -1.0, ((each, -1.0),)) for each in ids[1:])]
    *parts, echo = responses.of([Prompt(entries)])
    told = [token for part in parts for token in part.prompt.tokens]
    assert [token.token_id for token in told] == ids
    assert [token.HasField("logprob") for token in told] == [False, *[True] * (len(ids) - 1)]
    assert max(len(part.prompt.tokens) for part in parts) < len(ids)
    assert list(echo.chunk.token_ids) == ids
    assert not echo.chunk.logprobs


def test_beams_are_whole_messages(demo: Tokenizer) -> None:
    responses = _responses(demo, beam=BeamParameters(3, num_return_sequences=2, stream_best=True))
    ids = tuple(demo.encode(" a fine", add_special_tokens=False))
    best, first, second = responses.of(
        [Best(ids[:1], -1.5), _end(0, score=-0.5, token_ids=ids), _end(1, score=-0.75, token_ids=ids[:1])]
    )
    assert (list(best.beam.token_ids), best.beam.text, best.beam.score) == (list(ids[:1]), demo.decode(ids[:1]), -1.5)
    assert (list(first.complete.token_ids), first.complete.text) == (list(ids), demo.decode(ids))
    assert (first.complete.score, second.complete.score, second.complete.index) == (-0.5, -0.75, 1)
    assert (responses.num_unfinished, responses.num_tokens) == (0, len(ids) + 1)


@pytest.mark.parametrize("together", [True, False])
def test_what_comes_after_a_stop_text_is_never_sent(demo: Tokenizer, together: bool) -> None:
    """Whether or not the end is known when the last token comes."""
    stop = StopStrings(["fi"], demo, include=False)
    tokens = _tokens(demo, " a fine morning")
    matcher = stop.matcher()
    last = next(position for position, token in enumerate(tokens) if matcher.add(token.token_id))  # type: ignore[union-attr]
    responses, end = _responses(demo, stop=stop), _end(0, FinishReason.STOP, stop="fi")
    messages = [*responses.of(tokens[: last + 1] + [end] * together)]
    if not together:
        messages += [*responses.of([end])]
    assert "".join(chunk.text for chunk in _chunks(messages)) == " a "
    assert messages[-1].complete.stop == "fi"


def test_a_failure_comes_after_what_was_made(demo: Tokenizer) -> None:
    responses = _responses(demo)
    messages = responses.of([*_tokens(demo, " a fine"), Failed(RuntimeError("a secret of the machine"))])
    assert next(messages).chunk.token_ids
    with pytest.raises(ComputationError) as raised:
        next(messages)
    assert raised.value.code == "INTERNAL"
    assert "secret" not in str(raised.value)


def test_progress_and_usage_are_sent_if_asked_for(demo: Tokenizer) -> None:
    events = [Progress(2, 1), *_tokens(demo, " a fine")]
    message = GenerateRequest(prompt_progress=True, chunk_usage=True)
    progress, chunk = _responses(demo, message=message).of(events)
    assert progress.progress == generation_pb2.PromptProgress(computed_tokens=2, total_tokens=3, cached_tokens=1)
    assert chunk.chunk.usage == generation_pb2.Usage(
        prompt_tokens=3, completion_tokens=len(events) - 1, cached_prompt_tokens=1
    )
    (plain,) = _responses(demo).of(events)
    assert not plain.chunk.HasField("usage")


def test_usage_counts_each_generation_alone(demo: Tokenizer) -> None:
    responses = _responses(demo, message=GenerateRequest(chunk_usage=True), n=2)
    tokens = _tokens(demo, " a", 1)
    for count in (1, 2):
        (message,) = responses.of(tokens)
        assert (message.chunk.index, message.chunk.usage.completion_tokens) == (1, count * len(tokens))


def test_the_token_that_ended_a_generation_is_named(demo: Tokenizer) -> None:
    (end,) = _responses(demo).of([_end(reason=FinishReason.EOS, stop_token_id=0)])
    assert end.complete.HasField("stop_token_id")
    (end,) = _responses(demo).of([_end()])
    assert not end.complete.HasField("stop_token_id")


@pytest.mark.parametrize("keeps", [True, False])
def test_special_tokens_are_text_if_asked_for(demo: Tokenizer, keeps: bool) -> None:
    (end_token,) = (
        token_id for token_id in range(10) if demo.is_special(token_id) and demo.token_text(token_id) == "</s>"
    )
    message = GenerateRequest(skip_special_tokens=False) if keeps else GenerateRequest()
    events = [*_tokens(demo, " a"), Token(0, end_token), _end()]
    text = "".join(chunk.text for chunk in _chunks([*_responses(demo, message=message).of(events)]))
    assert text.strip() == ("a</s>" if keeps else "a")
