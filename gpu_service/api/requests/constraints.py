"""Compiles the constraint of a request. An error names the field and the place in it."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from fiddler.v1 import generation_pb2
from gpu_service.errors import RequestError
from gpu_service.model_runner.model import Model
from gpu_service.settings import RequestLimits
from gpu_service.text.guidance import NoGuidanceError
from gpu_service.text.tokenizer import Tokenizer

_JSON_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As json.dumps writes. Without free whitespace, more of the text is forced, and no model can write it without end."""
_MAX_SEARCHED_SCHEMAS = 500


def constraint_of(
    message: generation_pb2.GenerateRequest, model: Model, tokenizer: Tokenizer, limits: RequestLimits
) -> LLMatcher | None:
    """The grammar of the output, at its beginning; None if there is no constraint.

    Raises:
        RequestError: The constraint is wrong, or cannot be followed.
    """
    kind = message.WhichOneof("constraint")
    if kind is None:
        return None
    check_takes_constraints(kind, message, model)
    _check_size(message, kind, limits)
    try:
        vocabulary = tokenizer.guidance.vocabulary(model.vocab_size, model.eos_ids, has_names=kind == "grammar")
    except NoGuidanceError as error:
        raise RequestError(kind, str(error)) from None
    return compiled(kind, _grammar(message, kind, vocabulary), vocabulary)


def check_takes_constraints(field: str, message: generation_pb2.GenerateRequest, model: Model) -> None:
    """Checks that the output of a request can be constrained.

    Raises:
        RequestError: It cannot. The error names the field that asks for it.
    """
    if message.HasField("beam_search"):
        raise RequestError(field, "must be unset with beam_search")
    if model.start_token_id is not None:
        raise RequestError(field, "must be unset with an encoder-decoder model")


def compiled(field: str, grammar: str, vocabulary: LLTokenizer) -> LLMatcher:
    """A grammar of llguidance, ready to be followed.

    Raises:
        RequestError: It is wrong.
    """
    matcher = LLMatcher(vocabulary, grammar, log_level=0)
    if matcher.is_error():
        raise RequestError(field, _first_lines(matcher.get_error()))
    return matcher


def grammar_of_schema(field: str, schema: str, vocabulary: LLTokenizer) -> str:
    """The grammar of JSON that a schema describes.

    Raises:
        RequestError: The schema is wrong, or has keywords that cannot be enforced.
    """
    try:
        parsed = json.loads(schema)
    except ValueError as error:
        raise RequestError(field, f"must be JSON: {error}") from None
    except RecursionError:
        raise RequestError(field, "must be nested less deeply") from None
    if not isinstance(parsed, dict | bool):
        raise RequestError(field, "must be a JSON object or a boolean")
    grammar = LLMatcher.grammar_from_json_schema(schema, defaults=_JSON_STYLE)
    if problem := _problem(grammar, vocabulary):
        place = _place_of(parsed, problem, vocabulary)
        raise RequestError(field, f"{place}: {_first_lines(problem)}")
    return grammar


def _grammar(message: generation_pb2.GenerateRequest, kind: str, vocabulary: LLTokenizer) -> str:
    match kind:
        case "json_schema":
            return grammar_of_schema(kind, message.json_schema, vocabulary)
        case "json_object":
            if not message.json_object:
                raise RequestError(kind, "must be true or unset")
            return grammar_of_schema(kind, '{"type": "object"}', vocabulary)
        case "regex":
            return LLMatcher.grammar_from_regex(message.regex)
        case "choice":
            return LLMatcher.grammar_from_regex(_any_of(message.choice))
    return LLMatcher.grammar_from_lark(message.grammar)


def _any_of(choice: generation_pb2.Choices) -> str:
    if not choice.texts:
        raise RequestError("choice.texts", "must not be empty")
    for position, text in enumerate(choice.texts):
        if not text:
            raise RequestError(f"choice.texts[{position}]", "must not be empty")
    return "|".join(map(re.escape, choice.texts))


def _check_size(message: generation_pb2.GenerateRequest, kind: str, limits: RequestLimits) -> None:
    value: Any = getattr(message, kind)
    num_bytes = len(value.encode()) if isinstance(value, str) else 0
    if kind == "choice":
        num_bytes = sum(len(text.encode()) for text in message.choice.texts)
    if num_bytes > limits.max_constraint_bytes:
        raise RequestError(kind, f"at most {limits.max_constraint_bytes} bytes, got {num_bytes}")


def _problem(grammar: str, vocabulary: LLTokenizer) -> str:
    is_wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar, vocabulary)
    return messages[0] if is_wrong else ""


def _place_of(schema: Any, problem: str, vocabulary: LLTokenizer) -> str:
    """Where in a schema a problem is, as a JSON pointer: the innermost schema that has it by itself.

    llguidance reports the problem without its place.
    """
    place, num_left = "#", _MAX_SEARCHED_SCHEMAS
    while True:
        for path, inner in _inner(schema):
            num_left -= 1
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(inner), defaults=_JSON_STYLE)
            if num_left > 0 and _problem(grammar, vocabulary) == problem:
                place, schema = f"{place}/{path}", inner
                break
        else:
            return place


def _inner(schema: Any) -> Iterator[tuple[str, Any]]:
    """The schemas that are directly within a schema, with their paths."""
    members: Iterable[tuple[object, Any]]
    for key, value in schema.items() if isinstance(schema, dict) else ():
        if key in ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"):
            members = value.items() if isinstance(value, dict) else ()
        elif isinstance(value, list):
            members = enumerate(value)
        else:
            if isinstance(value, dict):
                yield key, value
            continue
        yield from ((f"{key}/{name}", each) for name, each in members if isinstance(each, dict))


def _first_lines(text: str) -> str:
    """On one line, and not the whole of a long grammar."""
    return " ".join(text.split())[:500]
