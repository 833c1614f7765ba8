"""A small tokenizer like T5's: words and letters, no token at the beginning of a text, and sentinels for spans."""

from pathlib import Path
from typing import Final

from transformers import T5Tokenizer

NUM_SENTINELS: Final = 10
_WORDS: Final = ("▁the", "▁dog", "▁walks", "▁in", "▁park", "▁a", "s")


def write(directory: Path) -> None:
    """Writes the tokenizer as save_pretrained does. Tokens are numbered like T5's: sentinels last, in reverse."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(word, -2.0) for word in _WORDS] + [(letter, -8.0) for letter in "▁abcdefghijklmnopqrtuvwxyz"]
    vocabulary += [(f"<extra_id_{number}>", 0.0) for number in reversed(range(NUM_SENTINELS))]
    T5Tokenizer(vocab=vocabulary, extra_ids=NUM_SENTINELS).save_pretrained(directory)
