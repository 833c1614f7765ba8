"""How much longer a tokenizer's own steps may make a text.

The tokenizers library ends the process when memory runs out, so a normalizer that replaces a letter by a thousand,
three times over, must be found before it is run.
"""

import base64
import binascii
import json
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

MOST = 1000.0
"""The most times that a tokenizer may lengthen a text and be served. Published ones stay below 50."""
_OF_UNICODE = 18.0  # of NFKC and NFKD, as the Unicode standard says


def growth_of(tokenizer: PreTrainedTokenizerBase) -> float:
    """How many characters one character becomes at most, when a text is normalized or tokens are decoded; 1 or more."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    parts = (getattr(backend, "normalizer", None), getattr(backend, "decoder", None))
    return max(_growth(part) for part in parts)


def _growth(part: Any) -> float:
    growth = 1.0
    for step in _steps(_state(part)):
        growth *= max(1.0, _growth_of_step(step))
    return growth


def _state(part: Any) -> Any:
    if part is None:
        return None
    try:
        return json.loads(part.__getstate__())
    except (TypeError, ValueError):  # written in Python
        return None


def _steps(state: Any) -> Iterator[dict[str, Any]]:
    if isinstance(state, dict) and state.get("type") == "Sequence":
        for part in state.get("normalizers") or state.get("decoders") or []:
            yield from _steps(part)
    elif isinstance(state, dict):
        yield state


def _growth_of_step(step: dict[str, Any]) -> float:
    content = len(str(step.get("content") or ""))
    match step.get("type"):
        case "Replace":
            pattern = step.get("pattern") or {}
            return content / max(1, len(str(pattern.get("String", "x"))))  # an expression may match one character
        case "Prepend":
            return 1.0 + len(str(step.get("prepend") or ""))  # before each part of a text between special tokens
        case "NFKC" | "NFKD":
            return _OF_UNICODE
        case "Precompiled":
            return float(_longest_of_charsmap(step.get("precompiled_charsmap")))
    return 1.0


def _longest_of_charsmap(charsmap: Any) -> int:
    """The longest text that a sentencepiece normalizer writes: a trie's size, the trie, texts that end in a 0 byte."""
    try:
        data = base64.b64decode(str(charsmap or ""))
    except binascii.Error:
        return 1
    texts = data[4 + int.from_bytes(data[:4], "little") :]
    return max((len(text) for text in texts.split(b"\0")), default=1)
