"""Outputs follow their constraints, whatever else is asked, and forced tokens save steps without changing any."""

import json
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_service.engine.events import Failed, Token
from gpu_service.engine.preparation import prepare
from gpu_service.sampling.outputs import FinishReason
from gpu_service.sampling.parameters import SamplingParameters
from tests.support.constrained import EOS, TOKENIZER, Steps, end_of, reader_of, text_of, tokens_of

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "maxLength": 5},
        "year_of_birth": {"type": "integer", "minimum": 1900, "maximum": 2000},
        "favourite_colour": {"enum": ["red", "green"]},
    },
    "required": ["first_name", "year_of_birth", "favourite_colour"],
    "additionalProperties": False,
}
SCHEMA = {"json_schema": json.dumps(PERSON)}
SAMPLED = SamplingParameters(temperature=1.0, seed=3)


@pytest.mark.parametrize("sampling", [SamplingParameters(), SAMPLED], ids=["greedy", "sampled"])
def test_forced_tokens_save_steps_and_change_nothing(sampling: SamplingParameters) -> None:
    ahead, stepwise, one_by_one = Steps(), Steps(runs_ahead=False), Steps()
    (fast,), (slow,) = (steps.run(reader_of(constraint=SCHEMA, sampling=sampling)) for steps in (ahead, stepwise))
    (told,) = one_by_one.run(reader_of(constraint=SCHEMA, sampling=sampling, logprobs=0))
    jsonschema.validate(json.loads(text_of(fast)), PERSON)
    assert tokens_of(fast) == tokens_of(slow) == tokens_of(told)
    assert end_of(fast).reason is FinishReason.STOP
    assert one_by_one.model.steps == len(tokens_of(fast))
    assert ahead.model.steps < stepwise.model.steps / 1.5 <= one_by_one.model.steps / 1.5
    for event in told:  # each token's log probability is the model's, forced or not
        assert not isinstance(event, Token) or (event.logprobs is not None and event.logprobs.logprob is not None)


def test_several_requests_at_once_each_follow_their_own() -> None:
    constraints: list[dict[str, Any]] = [
        SCHEMA,
        {"regex": "[0-9]{3}-[a-f]{2}"},
        {"choice": {"texts": ["yes please", "no thanks"]}},
        {},
    ]
    kinds = [SamplingParameters(), SAMPLED]

    def readers() -> list[Any]:
        return [reader_of(constraint=each, max_tokens=60, sampling=kind) for each in constraints for kind in kinds]

    together = Steps().run(*readers())
    alone = [Steps().run(reader)[0] for reader in readers()]
    assert [tokens_of(events) for events in together] == [tokens_of(events) for events in alone]
    for position, events in enumerate(together):
        text = text_of(events) if position < 6 else ""
        match position // 2:
            case 0:
                jsonschema.validate(json.loads(text), PERSON)
            case 1:
                assert re.fullmatch(r"[0-9]{3}-[a-f]{2}", text)
            case 2:
                assert text in ("yes please", "no thanks")


def test_generations_of_one_request_follow_it_each_by_itself() -> None:
    (events,) = Steps().run(reader_of(constraint=SCHEMA, sampling=SamplingParameters(temperature=1.5, seed=1), n=3))
    texts = [text_of(events, index) for index in range(3)]
    for text in texts:
        jsonschema.validate(json.loads(text), PERSON)
    assert len(set(texts)) > 1


def test_a_stop_text_within_forced_tokens_ends_the_output_there() -> None:
    from gpu_service.text.stop_strings import StopStrings

    stop = StopStrings(["_of_"], TOKENIZER, include=False)
    (events,) = Steps().run(reader_of(constraint=SCHEMA, stop=stop))
    end = end_of(events)
    assert (end.reason, end.stop, end.stop_token_id) == (FinishReason.STOP, "_of_", None)
    assert text_of(events).endswith("_of_") or "_of_" in text_of(events)[-12:]
    assert "birth" not in text_of(events)


def test_a_length_within_forced_tokens_ends_the_output_there() -> None:
    (whole,) = Steps().run(reader_of(constraint=SCHEMA))
    (events,) = Steps().run(reader_of(constraint=SCHEMA, max_tokens=3))
    assert tokens_of(events) == tokens_of(whole)[:3]
    assert end_of(events).reason is FinishReason.LENGTH


def test_the_end_comes_once_the_output_may_end_and_min_tokens_are_there() -> None:
    for min_tokens in (0, 7):
        (events,) = Steps().run(reader_of(constraint={"regex": "a*"}, min_tokens=min_tokens, max_tokens=40))
        assert set(text_of(events)) <= {"a"}
        assert len(tokens_of(events)) >= min_tokens
    (short,) = Steps().run(reader_of(constraint={"choice": {"texts": ["no"]}}, min_tokens=9))
    assert text_of(short) == "no", "nothing else may follow"
    (empty,) = Steps().run(reader_of(constraint={"regex": "()"}, min_tokens=9))
    assert (tokens_of(empty), end_of(empty).reason) == ([EOS], FinishReason.EOS)


def test_penalties_and_biases_choose_among_what_is_allowed() -> None:
    texts = ["red", "green"]
    allowed = [token for token in range(300) if TOKENIZER.token_bytes(token) in (b"r", b"g")]
    assert len(allowed) == 2
    for token in allowed:
        bias = SamplingParameters(logit_bias=((token, 50.0), (7, 100.0)), presence_penalty=1.0, repetition_penalty=1.1)
        (events,) = Steps().run(reader_of(constraint={"choice": {"texts": texts}}, sampling=bias))
        assert text_of(events) in texts
        assert text_of(events).encode()[:1] == TOKENIZER.token_bytes(token)


def test_a_stop_token_may_end_what_is_complete() -> None:
    stop = 90
    bias = SamplingParameters(logit_bias=((stop, 100.0), (EOS, -100.0)))
    (events,) = Steps().run(reader_of(constraint={"regex": "ab(cd)*"}, stop_ids=[stop], sampling=bias))
    assert tokens_of(events)[-1] == stop
    assert (end_of(events).reason, end_of(events).stop_token_id) == (FinishReason.STOP, stop)


def test_what_the_grammar_gets_too_complex_for_fails_alone() -> None:
    reader = reader_of(constraint=SCHEMA)
    steps = Steps()
    prepare(reader.answer, steps.model)  # type: ignore[arg-type]
    (other,) = Steps().run(reader_of(constraint={"regex": "a"}))
    assert text_of(other) == "a"
    constraint = reader.answer.generations[0].constraint
    assert constraint is not None
    constraint._matcher.consume_token(EOS)  # now it is in an error
    steps.stepper._answers[reader.request] = reader.answer
    steps.scheduler.add(reader.answer)
    for _ in range(40):
        steps.stepper.step()
    (event,) = (each for each in reader.all() if isinstance(each, Failed))
    assert "the constraint cannot be followed" in str(event.error)


_PATTERNS = ("^[a-c]{2}$", "^x(yz)?$", "^[0-9]{4}-[0-9]{2}$")
_LEAVES = st.one_of(
    st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 6)),
    st.builds(
        lambda least, size: {"type": "integer", "minimum": least, "maximum": least + size},
        st.integers(-50, 50),
        st.integers(0, 900),
    ),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.text('aé"\\ b', max_size=4), min_size=1, max_size=3, unique=True),
    ),
    st.builds(lambda value: {"const": value}, st.one_of(st.integers(-9, 99), st.text("xy", max_size=3))),
    st.builds(lambda pattern: {"type": "string", "pattern": pattern}, st.sampled_from(_PATTERNS)),
)


def _objects(values: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    members = st.dictionaries(st.text("abc_", min_size=1, max_size=5), values, max_size=4)

    def build(properties: dict[str, Any], share: int) -> dict[str, Any]:
        required = list(properties)[: len(properties) * share // 3]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    return st.builds(build, members, st.integers(0, 3))


def _inner(values: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    arrays = st.builds(
        lambda items, least, more: {"type": "array", "items": items, "minItems": least, "maxItems": least + more},
        values,
        st.integers(0, 2),
        st.integers(0, 2),
    )
    return st.one_of(
        _objects(values), arrays, st.builds(lambda either: {"anyOf": either}, st.lists(values, min_size=1, max_size=3))
    )


@settings(max_examples=60)
@given(schema=st.recursive(_LEAVES, _inner, max_leaves=6), seed=st.integers(0, 2**20), greedy=st.booleans())
def test_outputs_of_random_schemas_always_validate(schema: dict[str, Any], seed: int, greedy: bool) -> None:
    sampling = SamplingParameters() if greedy else SamplingParameters(temperature=1.0, seed=seed)
    constraint = {"json_schema": json.dumps(schema)}
    ahead, stepwise = Steps(), Steps(runs_ahead=False)
    (events,) = ahead.run(reader_of(constraint=constraint, sampling=sampling, max_tokens=1500))
    (slow,) = stepwise.run(reader_of(constraint=constraint, sampling=sampling, max_tokens=1500))
    assert end_of(events).reason in (FinishReason.STOP, FinishReason.EOS)
    jsonschema.Draft202012Validator(schema).validate(json.loads(text_of(events)))
    assert tokens_of(events) == tokens_of(slow)
    assert ahead.model.steps <= stepwise.model.steps
