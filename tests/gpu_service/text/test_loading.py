"""Tokenizers without a tokenizer.json: a sentencepiece model is enough, and what is not is told with what helps."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from gpu_service.errors import ModelError
from gpu_service.text.tokenizer import Tokenizer

_LINES = ["the mill stands by the river and the weather is fine", "a baker and a miller went to the sea"]
_TEXTS = ["the mill", " the  mill ", "Mill é 水", "a\nb", "x"]
_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def _train(directory: Path, file: str, kind: str, **more: Any) -> sentencepiece.SentencePieceProcessor:
    text = directory / "text"
    text.write_text("\n".join(_LINES * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(directory / "trained"),
        vocab_size=330,
        model_type=kind,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
        **more,
    )
    (directory / "trained.model").rename(directory / file)
    return sentencepiece.SentencePieceProcessor(model_file=str(directory / file))


def _configure(directory: Path, model_type: str, **tokenizer_config: Any) -> None:
    (directory / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 400}))
    (directory / "tokenizer_config.json").write_text(json.dumps(_NAMES | tokenizer_config))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("keeps_spaces", [False, True])
@pytest.mark.parametrize("has_prefix", [False, True])
def test_tokens_are_those_of_the_sentencepiece_model(
    tmp_path: Path, kind: str, keeps_spaces: bool, has_prefix: bool
) -> None:
    theirs = _train(
        tmp_path, "tokenizer.model", kind, remove_extra_whitespaces=not keeps_spaces, add_dummy_prefix=has_prefix
    )
    _configure(tmp_path, "mixtral", tokenizer_class="LlamaTokenizer")
    tokenizer = Tokenizer(tmp_path)
    for text in _TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == theirs.encode(text)
        assert tokenizer.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize(
    ("model_type", "tokenizer_class", "file"),
    [("deepseek_v3", "LlamaTokenizerFast", "tokenizer.model"), ("switch_transformers", "T5Tokenizer", "spiece.model")],
)
def test_a_class_of_the_family_knows_its_own_model(
    tmp_path: Path, model_type: str, tokenizer_class: str, file: str
) -> None:
    theirs = _train(tmp_path, file, "unigram" if file == "spiece.model" else "bpe")
    _configure(tmp_path, model_type, tokenizer_class=tokenizer_class)
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.encode("the mill", add_special_tokens=False) == theirs.encode("the mill")
    assert tokenizer.decode(tokenizer.encode("the mill")) == "the mill"


_TIKTOKEN = b"".join(b"%s %d\n" % (base64.b64encode(bytes([byte])), byte) for byte in range(256))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tiktoken.model": _TIKTOKEN}, "tiktoken.model is a tiktoken vocabulary, which does not say"),
        ({"tokenizer.model": _TIKTOKEN}, "tokenizer.model is a tiktoken vocabulary"),
        ({"qwen.tiktoken": _TIKTOKEN}, "qwen.tiktoken is a tiktoken vocabulary"),
        ({"tokenizer.model": b"\xff" * 100}, "tokenizer.model is not a sentencepiece model; copy it again"),
        ({"tokenizer.model": b"version https://git-lfs.github.com/spec/v1\n"}, "is a pointer of Git LFS"),
        ({"tokenizer.json": b"version https://git-lfs.github.com/spec/v1\n"}, "is a pointer of Git LFS"),
        ({}, "it has none: no tokenizer.json and no tokenizer.model"),
        ({"vocab.json": b"{}"}, "vocab.json cannot be read as the vocabulary of this family"),
        (
            {"tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": ["tokenization_x.Tok", null]}}'},
            "names code (tokenization_x.Tok), which is never run",
        ),
    ],
)
def test_what_lacks_is_named_with_what_helps(tmp_path: Path, files: dict[str, bytes], expected: str) -> None:
    _configure(tmp_path, "mixtral", tokenizer_class="LlamaTokenizer")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError) as raised:
        Tokenizer(tmp_path)
    text = str(raised.value)
    assert expected in text
    assert "tokenizer.json" in text or "git lfs pull" in text
    assert "pip install" not in text
    assert "\n" not in text
