"""The vocabulary as llguidance takes it, so that a grammar of characters becomes masks of tokens."""

import threading
from collections.abc import Collection
from typing import Any

from llguidance import LLTokenizer
from llguidance.hf import from_tokenizer


class NoGuidanceError(Exception):
    """llguidance cannot take the tokenizer. The text says why."""


class Guidance:
    """The vocabulary of one model, made when it is first needed, which takes about a second."""

    def __init__(self, tokenizer: Any) -> None:
        """Takes transformers' tokenizer."""
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None

    def vocabulary(self, vocab_size: int, eos_ids: Collection[int]) -> LLTokenizer:
        """The vocabulary. For any thread.

        Args:
            vocab_size: The number of the model's logits.
            eos_ids: What ends an output. The same at each call, as is vocab_size.

        Raises:
            NoGuidanceError: The tokenizer cannot be taken.
        """
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = self._make(vocab_size, eos_ids)
            return self._vocabulary

    def _make(self, vocab_size: int, eos_ids: Collection[int]) -> LLTokenizer:
        if getattr(self._tokenizer, "backend_tokenizer", None) is None:
            raise NoGuidanceError("the model's tokenizer is not one of the tokenizers library")
        size = max(vocab_size, len(self._tokenizer))
        try:
            return from_tokenizer(self._tokenizer, n_vocab=size, eos_token=sorted(eos_ids) or None)
        except Exception as error:  # of many kinds
            raise NoGuidanceError(f"the model's tokenizer cannot be constrained: {error}") from error
