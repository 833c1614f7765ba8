"""Compiles the grammar of an answer that must call functions, or whose calls must have the right arguments."""

import json
import re
from collections.abc import Sequence
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from fiddler.v1 import generation_pb2
from gpu_service.api.requests.chats import demanded, is_parallel
from gpu_service.api.requests.constraints import check_takes_constraints, compiled, grammar_of_schema
from gpu_service.errors import RequestError
from gpu_service.model_runner.model import Model
from gpu_service.settings import RequestLimits
from gpu_service.text.answering.form import CallForm, NoCallFormError, parses
from gpu_service.text.answering.grammar import Begun, CallGrammar, Function
from gpu_service.text.answering.parser import AnswerParser
from gpu_service.text.guidance import NoGuidanceError
from gpu_service.text.tokenizer import Tokenizer

_CHOICE = "chat.tool_choice"
_NO_PARAMETERS = '{"type": "object", "properties": {}, "additionalProperties": false}'
_TRIGGER = re.compile(r"\s*(<[^\s<>]+>|\[[A-Z_]+\])")
"""How calls begin if nothing else begins like that: a tag or a mark."""


def call_constraint_of(
    message: generation_pb2.GenerateRequest,
    prompt: Sequence[int],
    *,
    model: Model,
    tokenizer: Tokenizer,
    limits: RequestLimits,
) -> LLMatcher | None:
    """The grammar of an answer's calls, at the answer's beginning; None if there are no demands on them.

    Raises:
        RequestError: A demand cannot be met. The error names the field.
    """
    if message.WhichOneof("prompt") != "chat":
        return None
    chat = message.chat
    positions = demanded(chat)
    is_required = bool(positions)
    if not is_required and not _is_strict(message):
        return None
    if is_required:
        _check_demand(message, model)
    try:
        form = tokenizer.call_form()
    except NoCallFormError as error:
        if not is_required:
            return None
        raise RequestError(_CHOICE, f"the server cannot demand a call of this model: {error}") from None
    trigger = _TRIGGER.match(form.before)
    if not is_required and trigger is None:
        return None
    vocabulary = _vocabulary(model, tokenizer)
    functions = [
        _function(chat, position, vocabulary=vocabulary, limits=limits, is_free=not is_required)
        for position in positions or range(len(chat.tools))
    ]
    _check_names(functions, positions or range(len(chat.tools)), form, tokenizer)
    grammar = CallGrammar(form, tokenizer.split_special, model.eos_ids)
    begun = _begun(prompt, form, tokenizer)
    is_one = chat.tool_choice.WhichOneof("choice") == "name" or not is_parallel(chat)
    if is_required:
        return compiled(_CHOICE, grammar.required(functions, begun, many=not is_one), vocabulary)
    assert trigger is not None
    return compiled("chat.tools", grammar.free(functions, begun, trigger[1]), vocabulary)


def _is_strict(message: generation_pb2.GenerateRequest) -> bool:
    """Whether arguments must be right, and can be held to that."""
    chat = message.chat
    if message.WhichOneof("constraint") or message.HasField("beam_search"):
        return False
    if chat.continue_final_message or chat.tool_choice.mode == generation_pb2.TOOL_CHOICE_MODE_NONE:
        return False
    return any(tool.strict for tool in chat.tools)


def _check_demand(message: generation_pb2.GenerateRequest, model: Model) -> None:
    if kind := message.WhichOneof("constraint"):
        raise RequestError(kind, f"must be unset if {_CHOICE} demands a call")
    if message.chat.continue_final_message:
        raise RequestError("chat.continue_final_message", f"must be unset if {_CHOICE} demands a call")
    check_takes_constraints(_CHOICE, message, model)


def _vocabulary(model: Model, tokenizer: Tokenizer) -> LLTokenizer:
    try:
        return tokenizer.guidance.vocabulary(model.vocab_size, model.eos_ids)
    except NoGuidanceError as error:
        raise RequestError(_CHOICE, str(error)) from None


def _function(
    chat: generation_pb2.Chat, position: int, *, vocabulary: LLTokenizer, limits: RequestLimits, is_free: bool
) -> Function:
    """A function and the schema of its arguments: any object if they need not be right."""
    tool, field = chat.tools[position], f"chat.tools[{position}].parameters"
    if is_free and not tool.strict:
        return Function(tool.name, {"type": "object"})
    text = tool.parameters if tool.HasField("parameters") else _NO_PARAMETERS
    if len(text.encode()) > limits.max_constraint_bytes:
        raise RequestError(field, f"at most {limits.max_constraint_bytes} bytes, got {len(text.encode())}")
    schema: dict[str, Any] = {"type": "object", **json.loads(text)}
    if schema["type"] != "object":
        raise RequestError(field, "#/type: must be object, as arguments are")
    grammar_of_schema(field, json.dumps(schema), vocabulary)
    return Function(tool.name, schema)


def _check_names(functions: Sequence[Function], positions: Sequence[int], form: CallForm, tokenizer: Tokenizer) -> None:
    template = tokenizer.response_template
    assert template is not None  # there is a form
    for position, function in zip(positions, functions, strict=True):
        if not parses(form, function.name, template):
            raise RequestError(f"chat.tools[{position}].name", "calls in the form of this model cannot hold it")


def _begun(prompt: Sequence[int], form: CallForm, tokenizer: Tokenizer) -> Begun:
    template = tokenizer.response_template
    assert template is not None
    if form.reasoning is None:
        return Begun(reasons=False, may_reason=False)
    parser = AnswerParser(template, tokenizer.decode(prompt, skip_special_tokens=False))
    return Begun(parser.begins_in_reasoning, not parser.has_reasoned and not parser.begins_in_reasoning)
