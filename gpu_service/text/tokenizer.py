"""Converts text to tokens and back with the checkpoint's tokenizer. detokenizer.py does so while tokens come."""

import json
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from fiddler.checkpoint.errors import ConfigError
from fiddler.checkpoint.json_file import read_json
from fiddler.checkpoint.moe_config import model_type_of
from gpu_service.errors import ModelError
from gpu_service.models.registry import configuration_of
from gpu_service.text import openmoe
from gpu_service.text.chat_files import find_templates
from gpu_service.text.chat_template import ChatTemplateError, ChatTemplates, Message

__all__ = ["ChatTemplateError", "Tokenizer"]

_SENTINEL = re.compile(r"<extra_id_\d+>")
"""The names of T5's tokens for spans of text: special tokens that are part of the model's answer all the same."""
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how sentencepiece spells a byte of a character that has no token
_PREFIX = "abcdef"
"""Tokens are decoded after this text, since a leading space is dropped at the beginning of a text."""


class Tokenizer:
    """A checkpoint's tokenizer. Any thread may encode and decode."""

    def __init__(self, directory: Path) -> None:
        """Reads the tokenizer's files.

        Raises:
            UserError: The tokenizer, or a file with chat templates, cannot be read. The text names the file.
        """
        sources = find_templates(directory)
        try:
            self._tokenizer = _load(directory)
        except Exception as error:  # bad files raise many kinds of exceptions
            text = " ".join(str(error).split())  # some span many lines
            raise ModelError(f"{directory}: cannot read the tokenizer: {text}") from error
        self._encode_lock = threading.Lock()
        self.longest_token = max((len(token) for token in self._tokenizer.get_vocab()), default=1)
        """Characters of the longest token: a text of n times as many characters has at least n tokens."""
        sentinels = {id for token, id in self._tokenizer.get_vocab().items() if _SENTINEL.fullmatch(token)}
        self._special_ids = frozenset(self._tokenizer.all_special_ids) - sentinels
        self._has_special_text = not sentinels.isdisjoint(self._tokenizer.all_special_ids)
        self._spelling = _spelling(self._tokenizer)
        self._prefix_tokens: list[str] = self._tokenizer.convert_ids_to_tokens(  # type: ignore[assignment]
            self._encode(_PREFIX, add_special_tokens=False)
        )
        self._bytes: dict[int, bytes | None] = {}
        self.chat_templates = ChatTemplates(sources, _special_tokens(self._tokenizer))

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be rendered."""
        return bool(self.chat_templates.names)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with or without the special tokens that the model expects around it."""
        with self._encode_lock:
            return self._encode(text, add_special_tokens)

    def render(
        self,
        messages: Sequence[Message | tuple[str, str]],
        *,
        template: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **arguments: Any,
    ) -> str:
        """The prompt that a chat template makes of messages.

        Args:
            messages: As ChatTemplate.render takes them, or (role, content).
            template: The name of the template, if not the one that ChatTemplates.choose takes without a name.
            tools: See ChatTemplate.render.
            arguments: See ChatTemplate.render.

        Raises:
            ChatTemplateError: See ChatTemplate.render and ChatTemplates.choose.
        """
        named = [
            dict(zip(("role", "content"), each, strict=True)) if isinstance(each, tuple) else each for each in messages
        ]
        return self.chat_templates.choose(template, has_tools=tools is not None).render(named, tools=tools, **arguments)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        if skip_special_tokens and self._has_special_text:
            token_ids = [token_id for token_id in token_ids if token_id not in self._special_ids]
            skip_special_tokens = False
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        assert isinstance(text, str)
        return text

    def is_special(self, token_id: int) -> bool:
        """Whether a token is not part of the text."""
        return token_id in self._special_ids

    def ends_in_byte(self, token_ids: Sequence[int]) -> bool:
        """Whether the last token of text is one byte of a character, which the next token may continue."""
        last = next((token_id for token_id in reversed(token_ids) if token_id not in self._special_ids), None)
        token = None if last is None else self._tokenizer.convert_ids_to_tokens(last)
        return isinstance(token, str) and _BYTE_TOKEN.fullmatch(token) is not None

    def token_bytes(self, token_id: int) -> bytes | None:
        """What a token adds within a text: UTF-8, or part of a character. None: there is no such token.

        Tokens are spelt as transformers' StopStringCriteria spells them: special ones by their names.
        """
        if token_id not in self._bytes:
            token = self._tokenizer.convert_ids_to_tokens(token_id)
            self._bytes[token_id] = self._bytes_of(token) if isinstance(token, str) else None
        return self._bytes[token_id]

    def token_text(self, token_id: int) -> str:
        """The text of a single token as it would be within a text. Parts of characters become U+FFFD."""
        return (self.token_bytes(token_id) or b"").decode(errors="replace")

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"])

    def _bytes_of(self, token: str) -> bytes:
        if self._spelling == "ByteLevel" and all(character in _BYTES for character in token):
            return bytes(_BYTES[character] for character in token)
        if self._spelling == "ByteFallback" and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        text = self._tokenizer.convert_tokens_to_string([*self._prefix_tokens, token])
        _, prefix, rest = text.partition(_PREFIX)
        return (rest if prefix else text).encode()


def _load(directory: Path) -> PreTrainedTokenizerBase:
    path = directory / "config.json"
    model_type = model_type_of(read_json(path, ConfigError)) if path.is_file() else None
    if model_type == "openmoe":
        return openmoe.load(directory)
    # transformers does not know the model type; the tokenizer's own files are enough
    more = {"config": PreTrainedConfig()} if configuration_of(model_type or "") is not None else {}
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False, **more
    )
    return tokenizer


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The variables by which templates know special tokens, such as bos_token."""
    tokens = tokenizer.special_tokens_map.items()
    return {name: [str(each) for each in value] if isinstance(value, list) else str(value) for name, value in tokens}


_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}  # type: ignore[no-untyped-call]
"""The byte that each character of a byte-level vocabulary spells."""


def _spelling(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """How the vocabulary spells parts of characters: "ByteFallback", "ByteLevel", or None if it cannot."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return None
    try:
        types = _types(json.loads(decoder.__getstate__()))
    except (TypeError, ValueError):  # a decoder written in Python has no such state
        return None
    return next((name for name in ("ByteFallback", "ByteLevel") if name in types), None)


def _types(state: Any) -> set[str]:
    """The types of a decoder and of all its parts."""
    if isinstance(state, list):
        return {name for part in state for name in _types(part)}
    if isinstance(state, dict):
        return {str(state.get("type"))} | {name for part in state.values() for name in _types(part)}
    return set()
