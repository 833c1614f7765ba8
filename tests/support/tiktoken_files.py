"""Kimi's files of a tokenizer with a small vocabulary, and tiktoken's own encoding of it."""

import base64
import json
from pathlib import Path
from typing import Any

import tiktoken
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import bytes_to_unicode

SIZE = 400
"""Tokens that are not special."""
WHOLE = " Zqxj"
"""A token that no merges make: only as a whole part of a text it is one."""
# as in tokenization_kimi.py of Kimi-K2
PATTERN = "|".join(
    [
        r"""[\p{Han}]+""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""\p{N}{1,3}""",
        r""" ?[^\s\p{L}\p{N}]+[\r\n]*""",
        r"""\s*[\r\n]+""",
        r"""\s+(?!\S)""",
        r"""\s+""",
    ]
)
TEXTS = (
    "我们今天去北京大学。你好\uff0c世界\uff01人工智能 model",
    "The mill stands by the river; isn't it fine? I'LL go, they'VE gone, \u017f's ",
    "  spaces   \t tabs\r\n\r\n\n lines \u3000\u00a0 ",
    "😀😃🎉👨‍👩‍👧 e\u0301 é ñandú Привет мир 12345 ٣٤٥",
)
SPECIAL = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 5: "<|tool_call_begin|>"}
"""By their places after the vocabulary; the tool's is part of the text."""


def train() -> list[bytes]:
    """Bytes of SIZE tokens by rank, trained on TEXTS, which are divided as Kimi's code divides them, and WHOLE."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PATTERN), "isolated"), level])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=SIZE - 1, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([*TEXTS * 3, "a" * 12, " " * 20, "=" * 12, "\n" * 8], trainer)
    bytes_of = {character: byte for byte, character in bytes_to_unicode().items()}  # type: ignore[no-untyped-call]
    by_id = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    return [*(bytes(bytes_of[character] for character in token) for token, _ in by_id), WHOLE.encode()]


def write(directory: Path, vocabulary: list[bytes], **config: Any) -> Path:
    """Writes tiktoken.model and tokenizer_config.json as Kimi-K2 has them, and some config.json if there is none."""
    first = len(vocabulary)
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(vocabulary))
    (directory / "tiktoken.model").write_bytes(b"".join(lines))
    added = {
        str(first + place): {"content": name, "special": "tool" not in name, "lstrip": False, "normalized": False}
        for place, name in SPECIAL.items()
    }
    settings = {
        "added_tokens_decoder": added,
        "additional_special_tokens": ["<|im_end|>", "<|im_user|>"],
        "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
        "bos_token": "[BOS]",
        "eos_token": {"content": "[EOS]"},
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "TikTokenTokenizer",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | config))
    if not (directory / "config.json").exists():
        (directory / "config.json").write_text(json.dumps({"model_type": "kimi_k2", "vocab_size": first + 256}))
    return directory


def encoding(vocabulary: list[bytes]) -> tiktoken.Encoding:
    """Tiktoken's own, with 256 special tokens."""
    first = len(vocabulary)
    special = {SPECIAL.get(place, f"<|reserved_token_{first + place}|>"): first + place for place in range(256)}
    ranks = {token: rank for rank, token in enumerate(vocabulary)}
    return tiktoken.Encoding("kimi", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
