"""Which field of an HTTP request a field of the GPU service's request comes from, for its errors."""

from collections.abc import Mapping

from google.protobuf.message import Message

from http_gateway.errors import invalid

_COMMON = {
    "sampling.": "",
    "include_stop_in_output": "include_stop_str_in_output",
    "truncate_prompt": "truncate_prompt_tokens",
    "chunk_usage": "stream_options.continuous_usage_stats",
    "prompt_progress": "stream_options.include_prompt_progress",
}
CHAT = _COMMON | {
    "chat.": "",
    "chat": "messages",
    "prompt": "messages",
    "logprobs": "top_logprobs",
    "template_arguments": "chat_template_kwargs",
    "chat.template_arguments": "chat_template_kwargs",
}
"""Of a chat, by the beginnings of the paths in GenerateRequest."""
COMPLETION = _COMMON | {
    "text": "prompt",
    "token_ids": "prompt",
    "token_ids.ids": "prompt",
    "prompt_logprobs": "logprobs",
}
"""The same of a text completion."""
_OF_TOOLS = {
    ".parameters": ".function.parameters",
    ".description": ".function.description",
    ".strict": ".function.strict",
    ".name": ".function.name",
}
_OF_MESSAGES = {"].parts": "].content", "].reasoning": "].reasoning_content"}


class Names:
    """The fields of one request."""

    def __init__(self, names: Mapping[str, str]) -> None:
        """Takes the new names by the beginnings of paths in the GPU service's request."""
        self._names = dict(names)

    def rename(self, field: str, param: str) -> None:
        """Notes that this request's field comes from another one than usual."""
        self._names[field] = param

    def param_of(self, field: str) -> str:
        """The path of the HTTP request's field, e.g. "messages[0].content" for "chat.messages[0].content"."""
        beginning = max((name for name in self._names if _begins(field, name)), key=len, default=None)
        path = field if beginning is None else self._names[beginning] + field[len(beginning) :]
        if path.startswith("tools["):
            path = _replaced(path, _OF_TOOLS)
        return _replaced(path, _OF_MESSAGES) if path.startswith("messages[") else path

    def put(self, message: Message, field: str, value: object, path: str = "") -> None:
        """Sets a field, unless the value is None.

        Args:
            message: The message.
            field: Its field.
            value: Scalar, or a list for a repeated field.
            path: The path of the message in the request, with a dot at the end.

        Raises:
            ApiError: The value does not fit the field.
        """
        if value is None:
            return
        try:
            if isinstance(value, list):
                getattr(message, field).extend(value)
            else:
                setattr(message, field, value)
        except (TypeError, ValueError) as error:
            problem = "must be valid Unicode" if isinstance(error, UnicodeError) else f"does not fit: {error}"
            raise invalid(self.param_of(path + field), problem) from None


def _begins(field: str, name: str) -> bool:
    return field.startswith(name) and (name.endswith(".") or field[len(name) : len(name) + 1] in ("", ".", "["))


def _replaced(path: str, parts: Mapping[str, str]) -> str:
    for old, new in parts.items():
        path = path.replace(old, new)
    return path
