"""Text to tokens and back, a token at a time."""

import re
import threading
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")  # how sentencepiece spells a byte of a character it has no token for
_REPLACEMENT = "\ufffd"


class Tokenizer:
    """A checkpoint's tokenizer. Several threads may encode, and one at a time decode."""

    def __init__(self, directory: Path) -> None:
        """Reads the tokenizer's files.

        Raises:
            ValueError: The directory holds no tokenizer that transformers knows.
        """
        try:
            self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # it raises of all kinds at files that are wrong
            raise ValueError(f"{directory}: no tokenizer that can be read: {error}") from error
        self._encode_lock = threading.Lock()
        self.longest_token = max((len(token) for token in self._tokenizer.get_vocab()), default=1)
        """Characters of the longest token: a text of n times as many has at least n tokens."""
        self._special_ids = frozenset(self._tokenizer.all_special_ids)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the model expects around it."""
        with self._encode_lock:
            return list(self._tokenizer(text, verbose=False)["input_ids"])

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def ends_in_byte(self, token_ids: Sequence[int]) -> bool:
        """Whether the last token that is text is one byte of a character, which may go on in the next token."""
        last = next((token_id for token_id in reversed(token_ids) if token_id not in self._special_ids), None)
        token = None if last is None else self._tokenizer.convert_ids_to_tokens(last)
        return isinstance(token, str) and _BYTE_TOKEN.fullmatch(token) is not None


class Detokenizer:
    """Turns one generation's tokens into text as they come. The pieces, joined, are decode(all ids).

    A token's text depends on those before it (a leading space is dropped at the very start, bytes join to characters),
    so a window of tokens is decoded, once without and once with the new ones, and the difference is what is new. The
    window begins at the last place where the text was complete.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._window_start = 0
        self._num_emitted = 0  # tokens whose text was given out

    def add(self, token_ids: Sequence[int]) -> str:
        """Returns the text that has become certain; it may be empty."""
        self._token_ids.extend(token_ids)
        if self._tokenizer.ends_in_byte(self._token_ids[self._num_emitted :]):
            return ""  # one more byte can change how the whole run of bytes before it is read
        return self._emit(hold_incomplete=True)

    def finish(self) -> str:
        """Returns the rest."""
        return self._emit(hold_incomplete=False)

    def _emit(self, hold_incomplete: bool) -> str:
        before = self._tokenizer.decode(self._token_ids[self._window_start : self._num_emitted])
        after = self._tokenizer.decode(self._token_ids[self._window_start :])
        if hold_incomplete and (after.endswith(_REPLACEMENT) or len(after) <= len(before)):
            return ""
        self._window_start = self._num_emitted
        self._num_emitted = len(self._token_ids)
        return after[len(before) :]
