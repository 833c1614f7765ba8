"""Finds out how a model writes calls of functions, from what its chat template writes of earlier ones.

The template renders chats with calls of probe functions. What surrounds their names and arguments is the form. It is
one that answers can be required to have if the response parser finds the same calls in it.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_service.text.answering.parser import REASONING_FIELDS, TOOL_FIELD, AnswerParser, FoundCall
from gpu_service.text.chat_template import ChatTemplateError
from gpu_service.text.template_pool import PoolBusyError

ID = "prb123456"
"""The id of a probe's call: nine letters and digits, as some templates demand. Models write such an id themselves."""
_NAMES = ("zq_first_qz", "zq_second_qz")
_ARGUMENTS = ({"zq_key_a": "zq a qz"}, {"zq_key_b": "zq b qz"})
_REASONING = "zq reasons qz"
_USER = {"role": "user", "content": "zq asks qz"}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "",
            "parameters": {"type": "object", "properties": {key: {"type": "string"} for key in arguments}},
        },
    }
    for name, arguments in zip(_NAMES, _ARGUMENTS, strict=True)
]
Render = Callable[..., str]
"""Renders messages with tools and arguments, as Tokenizer.render does."""


class NoCallFormError(Exception):
    """It is not known how the model writes calls, or that is not JSON. The text says why."""


@dataclass(frozen=True, slots=True)
class Reasoning:
    """How an answer's reasoning is marked."""

    opening: str
    closing: str
    glue: str
    """What is between the end of the reasoning and a call."""


@dataclass(frozen=True, slots=True)
class CallForm:
    """A call is written as before + name + middle + arguments + after. ID in these texts stands for an id."""

    before: str
    middle: str
    after: str
    """With whatever the template writes after an answer, such as the token that ends it."""
    between: str | None
    """From one call's arguments to the name of the next; None: an answer has one call."""
    reasoning: Reasoning | None

    def text(self, name: str, arguments: str) -> str:
        """An answer with one call."""
        return f"{self.before}{name}{self.middle}{arguments}{self.after}"


@dataclass(frozen=True, slots=True)
class Probes:
    """What a chat template makes of the same chat with different answers."""

    prompt: str
    """With the beginning of an answer."""
    one: str
    """Answered by one call."""
    two: str | None
    """Answered by two calls; None if the template refuses that."""
    reasoned: str | None
    """Answered by reasoning and one call; None likewise."""


def probe(render: Render) -> Probes:
    """Renders the probes.

    Raises:
        NoCallFormError: The template refuses calls.
    """
    try:
        prompt = render([_USER], tools=_TOOLS)
        one = render([_USER, _answer(1)], tools=_TOOLS, add_generation_prompt=False)
    except (ChatTemplateError, PoolBusyError) as error:
        raise NoCallFormError(f"its chat template writes no calls of functions: {error}") from None
    return Probes(prompt, one, _or_none(render, _answer(2)), _or_none(render, _answer(1, _REASONING)))


def form_of(probes: Probes, template: Mapping[str, Any]) -> CallForm:
    """The form of calls that probes show.

    Args:
        probes: See probe.
        template: The response template, by which answers are parsed.

    Raises:
        NoCallFormError: See there.
    """
    begun = _after_prompt(probes.one, probes.prompt, template)
    reasoning = _reasoning(probes.reasoned, template)
    if reasoning is not None and reasoning.opening in begun:  # an empty one
        begun = begun.rpartition(reasoning.closing)[2].lstrip()
    before, middle, after = _parts(begun)
    between = None
    if probes.two is not None:
        second = _after_prompt(probes.two, probes.prompt, template)
        try:
            between = _between(second, middle)
        except NoCallFormError:
            between = None
    form = CallForm(before, middle, after, between, reasoning)
    _check(form, probes.prompt, template)
    return form


def parses(form: CallForm, name: str, template: Mapping[str, Any], prompt: str = "") -> bool:
    """Whether the response parser finds a call of a function in the text of one."""
    parser = AnswerParser(template, prompt)
    first, rest = parser.add(form.text(name, '{"a": {}}')), parser.finish()
    return [*first.tool_calls, *rest.tool_calls] == [FoundCall(name, '{"a": {}}')]


def _answer(num_calls: int, reasoning: str | None = None) -> dict[str, Any]:
    calls = [
        {"id": ID, "type": "function", "function": {"name": name, "arguments": arguments}}
        for name, arguments in zip(_NAMES[:num_calls], _ARGUMENTS, strict=False)
    ]
    message: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": calls}
    if reasoning is not None:  # families name it differently
        message |= {"reasoning_content": reasoning, "thinking": reasoning, "reasoning": reasoning}
    return message


def _or_none(render: Render, answer: Mapping[str, Any]) -> str | None:
    try:
        return render([_USER, answer], tools=_TOOLS, add_generation_prompt=False)
    except (ChatTemplateError, PoolBusyError):
        return None


def _after_prompt(text: str, prompt: str, template: Mapping[str, Any]) -> str:
    """The answer within a rendered chat."""
    if text.startswith(prompt):
        return text[len(prompt) :]
    anchors = template.get("start_anchor") or []
    for anchor in [anchors] if isinstance(anchors, str) else anchors:
        _, found, rest = text.rpartition(anchor)
        if found:
            return rest
    raise NoCallFormError("its chat template begins earlier answers otherwise than new ones")


def _parts(text: str) -> tuple[str, str, str]:
    """What is before the first name, between it and its arguments, and after them."""
    before, found, rest = text.partition(_NAMES[0])
    if not found or _NAMES[0] in rest:
        raise NoCallFormError("its chat template does not write a function's name once before its arguments")
    found_arguments = _arguments_in(rest, 0)
    return before, rest[: found_arguments.start()], rest[found_arguments.end() :]


def _between(text: str, middle: str) -> str:
    """What is between the arguments of one call and the name of the next."""
    first = _arguments_in(text, 0)
    between, found, rest = text[first.end() :].partition(_NAMES[1])
    if not found or not rest.startswith(middle) or _arguments_in(rest, 1).start() != len(middle):
        raise NoCallFormError("a second call has another form")
    return between


def _arguments_in(text: str, number: int) -> re.Match[str]:
    ((key, value),) = _ARGUMENTS[number].items()
    found = re.search(rf'\{{\s*"{key}"\s*:\s*"{value}"\s*\}}', text)
    if found is None:
        raise NoCallFormError("its chat template does not write a call's arguments as JSON")
    return found


def _reasoning(text: str | None, template: Mapping[str, Any]) -> Reasoning | None:
    """How reasoning is marked, by the response template, and what comes after it, by the chat template."""
    fields: Mapping[str, Mapping[str, Any]] = template["fields"]
    for name in REASONING_FIELDS & fields.keys():
        opening, closing = fields[name].get("open"), fields[name].get("close")
        if not isinstance(opening, str) or not isinstance(closing, str):
            return None
        glue = ""
        if text is not None and _REASONING in text:
            _, found, rest = text.partition(_REASONING)[2].partition(closing)
            begun = re.match(r"\s*", rest) if found else None
            glue = begun.group() if begun else ""
            for anchor in _anchors(template):  # an answer in several messages
                if rest.startswith(anchor):
                    glue = anchor
        return Reasoning(opening, closing, glue)
    return None


def _anchors(template: Mapping[str, Any]) -> Sequence[str]:
    anchors = template.get("start_anchor") or []
    return [anchors] if isinstance(anchors, str) else anchors


def _check(form: CallForm, prompt: str, template: Mapping[str, Any]) -> None:
    field = template["fields"].get(TOOL_FIELD, {})
    args = field.get("content_args", {})
    if field.get("content") != "json" or args.get("unquoted_keys") or args.get("string_delims"):
        raise NoCallFormError("its calls have no JSON in them")
    if not parses(form, _NAMES[0], template, prompt):
        raise NoCallFormError("its response parser does not find the calls that its chat template writes")


def json_style(schema: Mapping[str, Any]) -> str:
    """A schema with the style in which JSON is to be written, for a grammar of llguidance."""
    style = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return json.dumps({**schema, "x-guidance": style})
