"""The vocabulary as llguidance takes it, so that a grammar of characters becomes masks of tokens."""

import json
import threading
from collections.abc import Collection
from copy import copy
from typing import Any

from llguidance import LLTokenizer


class NoGuidanceError(Exception):
    """llguidance cannot take the tokenizer. The text says why."""


class Guidance:
    """The vocabulary of one model, made when it is first needed, which takes about a second."""

    def __init__(self, tokenizer: Any) -> None:
        """Takes transformers' tokenizer."""
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._vocabularies: dict[bool, LLTokenizer] = {}

    def vocabulary(self, vocab_size: int, eos_ids: Collection[int], *, has_names: bool = False) -> LLTokenizer:
        """The vocabulary. For any thread.

        Args:
            vocab_size: The number of the model's logits.
            eos_ids: What ends an output. The same at each call, as is vocab_size.
            has_names: Whether a grammar may name special tokens. A text that must be written then cannot hold such a
                name, because llguidance takes it for the token. Without, grammars have special tokens' ids.

        Raises:
            NoGuidanceError: The tokenizer cannot be taken.
        """
        with self._lock:
            if has_names not in self._vocabularies:
                self._vocabularies[has_names] = self._make(vocab_size, eos_ids, has_names)
            return self._vocabularies[has_names]

    def _make(self, vocab_size: int, eos_ids: Collection[int], has_names: bool) -> LLTokenizer:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise NoGuidanceError("the model's tokenizer is not one of the tokenizers library")
        size = max(vocab_size, len(self._tokenizer))
        try:
            backend = copy(backend)
            backend.no_padding()
            backend.no_truncation()
            text = backend.to_str() if has_names else _without_names(backend.to_str())
            eos: Any = sorted(eos_ids) or self._tokenizer.eos_token_id
            return LLTokenizer(text, n_vocab=size, eos_token=eos)
        except Exception as error:  # of many kinds
            raise NoGuidanceError(f"the model's tokenizer cannot be constrained: {error}") from error


def _without_names(text: str) -> str:
    """A tokenizer's JSON in which no text spells the name of a special token."""
    tokenizer = json.loads(text)
    names = {}
    for token in tokenizer["added_tokens"]:
        if token["special"]:
            names[token["content"]] = f"\x00{token['id']}\x00"
            token["content"] = names[token["content"]]
    model = tokenizer["model"]
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): token_id for token, token_id in vocabulary.items()}
    elif vocabulary is not None:
        model["vocab"] = [[names.get(token, token), *rest] for token, *rest in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    tokenizer["post_processor"] = None  # adds special tokens by name
    return json.dumps(tokenizer)
