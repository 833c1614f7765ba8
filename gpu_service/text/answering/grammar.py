"""Grammars of answers that call functions, in llguidance's form of Lark."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gpu_service.text.answering.form import ID, CallForm, json_style

Split = Callable[[str], Iterable[str | int]]
"""Divides a text into texts and the ids of special tokens."""


class Function(NamedTuple):
    """A function that may be called."""

    name: str
    schema: Mapping[str, Any]
    """Of its arguments."""


class Begun(NamedTuple):
    """What the prompt has written of the answer."""

    reasons: bool
    """It ends within reasoning."""
    may_reason: bool
    """Reasoning may come."""


class CallGrammar:
    """Builds the grammar of one request."""

    def __init__(self, form: CallForm, split: Split, end_ids: frozenset[int]) -> None:
        """Prepares.

        Args:
            form: The model's.
            split: Knows the special tokens.
            end_ids: Tokens that end an answer; a form is cut off before them.
        """
        self._form = form
        self._split = split
        self._end_ids = end_ids
        self._repeats = form.between is not None and not self._has_end(form.between)

    def required(self, functions: Sequence[Function], begun: Begun, *, many: bool) -> str:
        """An answer that is calls, after its reasoning if there may be any.

        Args:
            functions: What may be called.
            begun: What the prompt has written.
            many: Whether there may be several calls.
        """
        first = self._literal(
            self._form.before.lstrip("\n") if begun.reasons or begun.may_reason else self._form.before
        )
        rules = [f"start: {self._reasoning(begun)}{first} calls"]
        repeated = ""
        if many and self._repeats:
            rules.append(f"between: {self._literal(self._form.between or '')}")
            repeated = " (between call)*"
        rules.append(f"calls: call{repeated} {self._literal(self._form.after)}")
        return self._grammar([*rules, *self._calls(functions), *self._reasoning_rules(begun)])

    def free(self, functions: Sequence[Function], begun: Begun, trigger: str) -> str:
        """Any answer whose calls are those of the functions.

        Args:
            functions: What may be called.
            begun: What the prompt has written.
            trigger: The beginning of a call, which is nothing else.
        """
        first = self._form.before.partition(trigger)[2]
        rules = [f"start: {self._reasoning(begun._replace(may_reason=False))}called* TEXT", r"TEXT: /(.|\n)*/"]
        between = self._form.between or ""
        repeated = ""
        if self._repeats and trigger not in between:
            rules.append(f"between: {self._literal(between)}")
            repeated = " (between call)*"
        tokens = list(self._split(trigger))
        if len(tokens) == 1 and isinstance(tokens[0], int):
            rules.append(f"trigger: TEXT <[{tokens[0]}]>")
        else:
            rules.append(f"trigger[lazy]: TEXT {json.dumps(trigger)}")
        rules.append(f"called: trigger {self._literal(first)} call{repeated} {self._literal(self._form.after)}")
        return self._grammar([*rules, *self._calls(functions), *self._reasoning_rules(begun)])

    def _calls(self, functions: Sequence[Function]) -> list[str]:
        middle = self._literal(self._form.middle)
        rules = [f"call: {' | '.join(f'call_{number}' for number in range(len(functions)))}"]
        for number, (name, schema) in enumerate(functions):
            rules.append(f"call_{number}: {json.dumps(name)} {middle} %json {json_style(schema)}")
        return rules

    def _reasoning(self, begun: Begun) -> str:
        if self._form.reasoning is None:
            return ""
        return "reasons " if begun.reasons else "(opening reasons)? " if begun.may_reason else ""

    def _reasoning_rules(self, begun: Begun) -> list[str]:
        reasoning = self._form.reasoning
        if reasoning is None or not (begun.reasons or begun.may_reason):
            return []
        closing = list(self._split(reasoning.closing))
        glue = self._literal(reasoning.glue)
        if len(closing) == 1 and isinstance(closing[0], int):
            rules = [f"reasons: REASONING <[{closing[0]}]> {glue}", r"REASONING: /(.|\n)*/"]
        else:
            rules = [f"reasons: reasoning {glue}", rf"reasoning[lazy]: /(.|\n)*/ {json.dumps(reasoning.closing)}"]
        return [*rules, f"opening: {self._literal(reasoning.opening)}"]

    def _has_end(self, text: str) -> bool:
        return any(part in self._end_ids for part in self._split(text))

    def _literal(self, text: str) -> str:
        """A text as terminals, up to a token that ends the answer; spaces before that are left out."""
        terms: list[str] = []
        parts = list(self._split(text))
        end = next((place for place, part in enumerate(parts) if part in self._end_ids), None)
        for place, part in enumerate(parts[:end]):
            is_last = text is self._form.after and place == len(parts[:end]) - 1
            if isinstance(part, int):
                terms.append(f"<[{part}]>")
                continue
            shown = part.rstrip() if is_last else part
            for number, piece in enumerate(shown.split(ID)):
                terms += [rf"/[a-zA-Z0-9]{{{len(ID)}}}/"] if number else []
                terms += [json.dumps(piece)] if piece else []
        return " ".join(terms)

    @staticmethod
    def _grammar(rules: Iterable[str]) -> str:
        return "\n".join(["%llguidance {}", *rules, ""])
