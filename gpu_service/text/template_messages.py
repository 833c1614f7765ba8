"""Messages in the forms that chat templates take them."""

import json
from collections.abc import Mapping
from enum import Enum
from typing import Any


class Form(Enum):
    """How a template takes the content of a message."""

    TEXT = "text"
    PARTS = "parts"


def in_form(content: Any, form: Form) -> Any:
    """A message's content in a form; as it is if it is neither text nor parts of text."""
    if isinstance(content, str):
        return content if form is Form.TEXT else [{"type": "text", "text": content}]
    if form is Form.TEXT and (texts := texts_of(content)) is not None:
        return "".join(texts)
    return content


def with_text_arguments(call: Any) -> Any:
    """A call whose arguments are the text of a JSON object."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), Mapping):
        return call
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def texts_of(content: Any) -> list[str] | None:
    """The texts of parts, or None if there are others."""
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in parts]
    return [text for text in texts if text is not None] if all(isinstance(text, str) for text in texts) else None
