"""From OpenAI's requests to the GPU service's."""

import json
from dataclasses import dataclass
from typing import Any

from fiddler.v1 import generation_pb2
from http_gateway.errors import invalid
from http_gateway.openai.chat_request import ChatRequest
from http_gateway.openai.common import GenerationBody
from http_gateway.openai.completion_request import CompletionRequest
from http_gateway.openai.conversation import fill_chat
from http_gateway.openai.names import CHAT, COMPLETION, Names

_SAMPLING = (
    *("temperature", "top_p", "min_p", "typical_p"),
    *("repetition_penalty", "frequency_penalty", "presence_penalty"),
)
_SAME = ("n", "min_tokens", "ignore_eos", "skip_special_tokens", "stop_token_ids")
_DEFAULT_COMPLETION_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Translation:
    """A request to the GPU service.

    Attributes:
        request: The request.
        names: Where its fields come from.
        shows_output: Whether the generated tokens are part of the answer: not if the caller asked for none.
    """

    request: generation_pb2.GenerateRequest
    names: Names
    shows_output: bool = True


def chat_request(body: ChatRequest) -> Translation:
    """The request to answer a conversation.

    Raises:
        ApiError: A field is wrong, or two contradict each other.
    """
    request, names = generation_pb2.GenerateRequest(), Names(CHAT)
    fill_chat(request.chat, body, names)
    _fill(request, body, names)
    if body.max_completion_tokens is not None:
        names.rename("max_tokens", "max_completion_tokens")
        request.max_tokens = body.max_completion_tokens
    elif body.max_tokens is not None:
        request.max_tokens = body.max_tokens
    if body.logprobs:
        request.logprobs = body.top_logprobs or 0
    elif body.top_logprobs:
        raise invalid("top_logprobs", "may be given only with logprobs")
    return Translation(request, names)


def completion_requests(body: CompletionRequest) -> list[Translation]:
    """The requests to continue each prompt.

    Raises:
        ApiError: A field is wrong, or two contradict each other.
    """
    prompts = body.prompts
    return [
        _completion_request(body, prompt, index if len(prompts) > 1 else None) for index, prompt in enumerate(prompts)
    ]


def _completion_request(body: CompletionRequest, prompt: str | list[int], index: int | None) -> Translation:
    request, names = generation_pb2.GenerateRequest(), Names(COMPLETION)
    if index is not None:
        for field in ("text", "token_ids", "token_ids.ids"):
            names.rename(field, f"prompt[{index}]")
    if isinstance(prompt, str):
        names.put(request, "text", prompt)
    else:
        request.token_ids.SetInParent()  # sends an empty list too, for the service to refuse
        names.put(request.token_ids, "ids", prompt, "token_ids.")
    _fill(request, body, names)
    max_tokens = _DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    # The service always generates; the log probabilities of a prompt alone are asked for with max_tokens 0.
    shows_output = not (max_tokens == 0 and body.echo)
    request.max_tokens = max_tokens if shows_output else 1
    if body.logprobs is not None:
        request.logprobs = body.logprobs
    if body.echo:
        request.echo = True
        if body.logprobs is not None:
            request.prompt_logprobs = body.logprobs
    return Translation(request, names, shows_output)


def _fill(request: generation_pb2.GenerateRequest, body: GenerationBody, names: Names) -> None:
    for name in _SAMPLING:
        names.put(request.sampling, name, getattr(body, name), "sampling.")
    for name in _SAME:
        names.put(request, name, getattr(body, name))
    if body.top_k is not None:
        request.sampling.top_k = max(body.top_k, 0)
    if body.seed is not None:  # OpenAI's seeds may be negative, the service's may not
        request.sampling.seed = body.seed if body.seed >= 0 else body.seed % 2**62
    for key, bias in (body.logit_bias or {}).items():
        request.sampling.logit_bias[int(key)] = bias
    names.put(request, "stop", [body.stop] if isinstance(body.stop, str) else body.stop)
    names.put(request, "include_stop_in_output", body.include_stop_str_in_output)
    if body.truncate_prompt_tokens is not None:
        request.truncate_prompt = max(body.truncate_prompt_tokens, 0)
    if body.priority is not None:
        request.priority = min(-body.priority, 2**31 - 1)
    options = body.stream_options
    if options is not None and options.continuous_usage_stats:
        request.chunk_usage = True
    if options is not None and options.include_prompt_progress:
        request.prompt_progress = True
    _constrain(request, body, names)


def _constrain(request: generation_pb2.GenerateRequest, body: GenerationBody, names: Names) -> None:
    """Sets what the output must be."""
    given = _constraints(body)
    if not given:
        return
    if len(given) > 1:
        raise invalid(given[1][0], f"may not be given with {given[0][0]}: the output can have one form only")
    ((param, kind, value),) = given
    names.rename(kind, param)
    if kind == "choice":
        request.choice.SetInParent()
        names.put(request.choice, "texts", value, "choice.")
    else:
        names.put(request, kind, _json(value) if isinstance(value, dict) else value)


def _constraints(body: GenerationBody) -> list[tuple[str, str, Any]]:
    """Each form that the body demands: its field, the service's kind of constraint, and its value."""
    found: list[tuple[str, str, Any]] = []
    form = body.response_format
    if form is not None and form.type == "json_object":
        if form.schema_ is None:
            found.append(("response_format", "json_object", True))
        else:
            found.append(("response_format.schema", "json_schema", form.schema_))
    if form is not None and form.type == "json_schema" and form.json_schema is not None:
        found.append(("response_format.json_schema.schema", "json_schema", form.json_schema.schema_))
    found += [
        ("guided_json", "json_schema", body.guided_json),
        ("guided_regex", "regex", body.guided_regex),
        ("guided_choice", "choice", body.guided_choice),
        ("guided_grammar", "grammar", body.guided_grammar),
    ]
    if (outputs := body.structured_outputs) is not None:
        found += [
            ("structured_outputs.json", "json_schema", outputs.json_),
            ("structured_outputs.regex", "regex", outputs.regex),
            ("structured_outputs.choice", "choice", outputs.choice),
            ("structured_outputs.grammar", "grammar", outputs.grammar),
            ("structured_outputs.json_object", "json_object", outputs.json_object or None),
        ]
    return [constraint for constraint in found if constraint[2] is not None]


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
