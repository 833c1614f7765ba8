"""Converts text to tokens and back with the checkpoint's tokenizer. detokenizer.py does so while tokens come."""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from fiddler.checkpoint.errors import ConfigError
from fiddler.checkpoint.json_file import read_json
from gpu_service.errors import ModelError, panics_as_errors
from gpu_service.text.answering.form import CallForm, NoCallFormError, form_of, probe
from gpu_service.text.answering.known import known_form
from gpu_service.text.answering.parser import response_template_of
from gpu_service.text.chat_files import find_templates
from gpu_service.text.chat_template import ChatTemplateError, ChatTemplates, Message
from gpu_service.text.growth import MOST, growth_of
from gpu_service.text.guidance import Guidance
from gpu_service.text.loading import load_tokenizer
from gpu_service.text.spelling import (
    REPLACEMENT,
    Spelling,
    byte_of_fallback,
    bytes_of_level,
    invalid_positions,
    num_incomplete,
    only_grows,
    spelling_of,
    split_names,
)

__all__ = ["ChatTemplateError", "Tokenizer"]

_SENTINEL = re.compile(r"<extra_id_\d+>")
"""The names of T5's tokens for spans of text: special tokens that are part of the model's answer all the same."""
_MAX_CHARACTERS = 2**28  # of a normalized text; the library takes several times as many bytes
_MAX_ERROR_LENGTH = 500
_LONGEST_CHARACTER = 4  # bytes in UTF-8
_PREFIX = "abcdef"
"""Tokens are decoded after this text, since a leading space is dropped at the beginning of a text."""


class TokenizerError(Exception):
    """The tokenizer cannot encode a text or decode tokens. The text says why."""


class Tokenizer:
    """A checkpoint's tokenizer. Any thread may encode and decode."""

    def __init__(self, directory: Path) -> None:
        """Reads the tokenizer's files.

        Raises:
            UserError: The tokenizer, or a file with chat templates, cannot be read. The text names the file.
        """
        sources = find_templates(directory)
        self._tokenizer = load_tokenizer(directory)
        self._growth = growth_of(self._tokenizer)
        if self._growth > MOST:
            problem = f"its steps may make a text {self._growth:.3g} times as long, and {MOST:g} is the most here"
            raise ModelError(f"{directory}: cannot use the tokenizer: {problem}")
        self._encode_lock = threading.Lock()
        self.longest_token = max((len(token) for token in self._tokenizer.get_vocab()), default=1)
        """Characters of the longest token: a text of n times as many characters has at least n tokens."""
        vocabulary = self._tokenizer.get_vocab()
        sentinels = {token_id for token, token_id in vocabulary.items() if _SENTINEL.fullmatch(token)}
        self._special_ids = _special_ids(self._tokenizer) - sentinels
        self._spelling = spelling_of(self._tokenizer)
        self._byte_of_id = {
            token_id: byte
            for token, token_id in vocabulary.items()
            if self._spelling is Spelling.BYTE_FALLBACK and (byte := byte_of_fallback(token)) is not None
        }
        self.only_grows = only_grows(self._tokenizer)
        """Whether the text of tokens is the beginning of the text of those and more, but for incomplete characters."""
        self._is_fast = getattr(self._tokenizer, "backend_tokenizer", None) is not None
        self._prefix_tokens: list[str] = self._tokenizer.convert_ids_to_tokens(  # type: ignore[assignment]
            self._encode(_PREFIX, add_special_tokens=False)
        )
        self._bytes: dict[int, bytes | None] = {}
        self._template_sources = sources
        self._directory = directory
        self.guidance = Guidance(self._tokenizer)
        """For outputs that follow a grammar."""

    @cached_property
    def chat_templates(self) -> ChatTemplates:
        """The chat templates. Probed when they are first asked for, which may take seconds."""
        return ChatTemplates(self._template_sources, _special_tokens(self._tokenizer))

    @cached_property
    def response_template(self) -> Mapping[str, Any] | None:
        """How answers to chats are parsed; None if it is not known."""
        return self._answers[0]

    @property
    def has_call_form(self) -> bool:
        """Whether `call_form` is known."""
        return isinstance(self._answers[1], CallForm)

    def call_form(self) -> CallForm:
        """The form in which the model writes calls of functions.

        Raises:
            NoCallFormError: It is not known.
        """
        form = self._answers[1]
        if isinstance(form, NoCallFormError):
            raise form
        return form

    @cached_property
    def _answers(self) -> tuple[Mapping[str, Any] | None, CallForm | NoCallFormError]:
        """The response template, and the form of calls or why it is not known."""
        path = self._directory / "config.json"
        model_type = str(read_json(path, ConfigError).get("model_type", "")) if path.is_file() else ""
        template = response_template_of(self._tokenizer, model_type, list(self._template_sources.values()))
        try:
            if not self.has_chat_template or not self.has_tool_template:
                raise NoCallFormError("the model's chat template does not write tools")
            probes = probe(self.render)
            if template is None:
                return known_form(probes)
            return template, form_of(probes, template)
        except NoCallFormError as error:
            return template, error

    def split_special(self, text: str) -> list[str | int]:
        """A text, divided into texts and the ids of the special tokens whose names are in it."""
        return split_names(text, self._special_by_name)

    @cached_property
    def _special_by_name(self) -> dict[str, int]:
        ids = sorted(self._special_ids)
        return dict(zip(self._tokenizer.convert_ids_to_tokens(ids), ids, strict=True))

    @property
    def has_tool_template(self) -> bool:
        """Whether a chat template writes tools."""
        return any(re.search(r"\btools\b", source) for source in self._template_sources.values())

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be rendered."""
        return bool(self.chat_templates.names)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with or without the special tokens that the model expects around it.

        Raises:
            TokenizerError: The tokenizer fails on this text.
        """
        if len(text) * self._growth > _MAX_CHARACTERS:
            raise TokenizerError(f"its normalized form may have more than {_MAX_CHARACTERS} characters")
        with self._encode_lock, _tokenizer_errors():
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
            PoolBusyError: Too many chats are being rendered.
        """
        named = [
            dict(zip(("role", "content"), each, strict=True)) if isinstance(each, tuple) else each for each in messages
        ]
        return self.chat_templates.choose(template, has_tools=tools is not None).render(named, tools=tools, **arguments)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids.

        Bytes that are no character become U+FFFD each. The tokenizers library does so to all bytes in a row if one of
        them is wrong; here whole characters among them stay, so that they can be sent before the wrong one comes.

        Raises:
            TokenizerError: The tokenizer fails on these tokens.
        """
        with _tokenizer_errors():
            return self._decode(token_ids, skip_special_tokens)

    def _decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        ids = self.visible(token_ids) if skip_special_tokens else list(token_ids)
        if wrong := self._wrong_bytes(ids):
            tokens: list[str | None] = self._tokenizer.convert_ids_to_tokens(ids)  # type: ignore[assignment]
            shown = [REPLACEMENT if place in wrong else token for place, token in enumerate(tokens)]
            return str(self._tokenizer.convert_tokens_to_string([token for token in shown if token is not None]))
        text = self._tokenizer.decode(ids, skip_special_tokens=False)
        assert isinstance(text, str)
        return text

    def visible(self, token_ids: Sequence[int]) -> list[int]:
        """The tokens that are part of the text."""
        return [token_id for token_id in token_ids if token_id not in self._special_ids]

    def num_incomplete(self, token_ids: Sequence[int], text: str) -> int:
        """How many characters at the end of the tokens' text are incomplete: the next token may change them.

        Args:
            token_ids: The tokens, all of them visible.
            text: What they decode to.
        """
        if not text.endswith(REPLACEMENT):
            return 0
        if self._spelling is Spelling.NONE:
            return 0 if self._is_fast else len(text) - len(text.rstrip(REPLACEMENT))
        last = b""
        for token_id in reversed(token_ids):
            is_text = self._spelling is Spelling.BYTE_FALLBACK and token_id not in self._byte_of_id
            if len(last) >= _LONGEST_CHARACTER or is_text:
                break
            last = (self.token_bytes(token_id) or b"") + last
        # a byte-level decoder writes one U+FFFD for the beginning of a character, however many bytes it has
        return min(num_incomplete(last), 1 if self._spelling is Spelling.BYTE_LEVEL else _LONGEST_CHARACTER)

    def is_special(self, token_id: int) -> bool:
        """Whether a token is not part of the text."""
        return token_id in self._special_ids

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

    def _wrong_bytes(self, token_ids: Sequence[int]) -> set[int]:
        """The places of tokens that spell bytes that are no part of a character."""
        wrong = set[int]()
        if not self._byte_of_id:
            return wrong
        run = bytearray()
        for place, token_id in enumerate([*token_ids, None]):
            byte = None if token_id is None else self._byte_of_id.get(token_id)
            if byte is not None:
                run.append(byte)
            elif run:
                wrong.update(place - len(run) + position for position in invalid_positions(bytes(run)))
                run.clear()
        return wrong

    def _bytes_of(self, token: str) -> bytes:
        if self._spelling is Spelling.BYTE_LEVEL and (spelt := bytes_of_level(token)) is not None:
            return spelt
        if self._spelling is Spelling.BYTE_FALLBACK and (byte := byte_of_fallback(token)) is not None:
            return bytes([byte])
        text = self._tokenizer.convert_tokens_to_string([*self._prefix_tokens, token])
        _, prefix, rest = text.partition(_PREFIX)
        return (rest if prefix else text).encode()


@contextmanager
def _tokenizer_errors() -> Iterator[None]:
    """Raises a TokenizerError for whatever the tokenizers library raises: plain exceptions and panics."""
    try:
        with panics_as_errors():
            yield
    except Exception as error:
        raise TokenizerError(str(error)[:_MAX_ERROR_LENGTH]) from error


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The variables by which templates know special tokens, such as bos_token."""
    tokens = tokenizer.special_tokens_map.items()
    return {name: [str(each) for each in value] if isinstance(value, list) else str(value) for name, value in tokens}


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that decoding without special tokens leaves out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return frozenset(tokenizer.all_special_ids)
    return frozenset(token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special)
