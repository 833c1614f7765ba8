"""How a vocabulary spells the bytes of characters, and whether its decoder's text only ever grows."""

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are no character."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}  # type: ignore[no-untyped-call]
_FIRST_ESCAPE, _LAST_ESCAPE = 0xDC80, 0xDCFF  # what surrogateescape makes of a byte that is no part of a character
_JOINING = {"Fuse", "ByteFallback", "ByteLevel"}  # they make one text of several tokens
_SAFE_ONCE_JOINED = {"Fuse", "ByteFallback", "Metaspace", "Strip"}


class Spelling(Enum):
    """How a vocabulary spells parts of characters."""

    BYTE_LEVEL = "ByteLevel"
    """A character of the vocabulary is a byte."""
    BYTE_FALLBACK = "ByteFallback"
    """A token such as <0xE6> is a byte of a character that has no token."""
    NONE = "none"
    """It cannot."""


def spelling_of(tokenizer: PreTrainedTokenizerBase) -> Spelling:
    """How a tokenizer's vocabulary spells parts of characters."""
    types = {str(step.get("type")) for step in _steps(tokenizer)}
    return next((kind for kind in (Spelling.BYTE_FALLBACK, Spelling.BYTE_LEVEL) if kind.value in types), Spelling.NONE)


def only_grows(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a further token leaves the text of those before it as it is, but for a character that is not whole.

    A decoder that searches the text of all tokens, once they are joined, for more than single characters may change
    any of it later.
    """
    is_joined = False
    for step in _steps(tokenizer):
        kind = step.get("type")
        is_one_character = len((step.get("pattern") or {}).get("String", "  ")) == 1 if kind == "Replace" else False
        if is_joined and kind not in _SAFE_ONCE_JOINED and not is_one_character:
            return False
        is_joined = is_joined or kind in _JOINING
    return True


def bytes_of_level(token: str) -> bytes | None:
    """The bytes that a token of a byte-level vocabulary spells; None if it is text."""
    return bytes(_BYTES[character] for character in token) if all(character in _BYTES for character in token) else None


def byte_of_fallback(token: str) -> int | None:
    """The byte that a token such as <0xE6> spells; None if it is text."""
    match = _BYTE_TOKEN.fullmatch(token)
    return int(match[1], 16) if match else None


def num_incomplete(data: bytes) -> int:
    """The number of bytes at the end that begin a character which further bytes may complete: 0 to 3."""
    for length in range(1, min(3, len(data)) + 1):
        if data[-length] & 0xC0 != 0x80:  # not one that continues a character
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            return length if not decoder.decode(data[-length:]) else 0
    return 0


def invalid_positions(data: bytes) -> set[int]:
    """The positions of bytes that are no part of a whole character."""
    invalid = set[int]()
    position = 0
    for character in data.decode(errors="surrogateescape"):
        if _FIRST_ESCAPE <= ord(character) <= _LAST_ESCAPE:
            invalid.add(position)
            position += 1
        else:
            position += len(character.encode())
    return invalid


def _steps(tokenizer: PreTrainedTokenizerBase) -> Sequence[dict[str, Any]]:
    """The decoder's steps in order; none if it is not of the tokenizers library, or written in Python."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return []
    try:
        return _flat(json.loads(decoder.__getstate__()))
    except (TypeError, ValueError):  # a decoder written in Python has no such state
        return []


def _flat(state: dict[str, Any]) -> list[dict[str, Any]]:
    if state.get("type") != "Sequence":
        return [state]
    return [step for part in state["decoders"] for step in _flat(part)]


def split_names(text: str, id_by_name: Mapping[str, int]) -> list[str | int]:
    """A text, divided into texts and the ids of the tokens whose names are in it. Of two names, the longer counts."""
    if not id_by_name:
        return [text] if text else []
    names = sorted(map(re.escape, id_by_name), key=len, reverse=True)
    return [id_by_name.get(part, part) for part in re.split(f"({'|'.join(names)})", text) if part]
