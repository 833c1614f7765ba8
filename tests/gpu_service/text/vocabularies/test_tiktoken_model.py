"""Kimi's tokenizer from tiktoken.model: the same tokens and texts as tiktoken's own, without running the code."""

import json
import random
import unicodedata
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from fiddler.checkpoint.errors import ConfigError
from gpu_service.errors import ModelError
from gpu_service.text.detokenizer import Detokenizer
from gpu_service.text.tokenizer import Tokenizer
from tests.support.damage import Damage
from tests.support.tiktoken_files import SIZE, SPECIAL, TEXTS, WHOLE, encoding, train, write

_CODE = f"""raise SystemExit("the code was run")

class TikTokenTokenizer:
    pat_str = "|".join({[r"[0-9]", r"[^0-9]+"]!r})
"""
_PIECES = ["a", "aa", "B", " ", "  ", "\n", "\r", "\t", "'s", "'", "S", "1", "234", ".", "!", "你", "好", "北京", "😀"]
_PIECES += [
    "e\u0301",
    "\u017f",
    "\u212a",
    "\u200d",
    "\u3000",
    "\u00a0",
    *SPECIAL.values(),
    "<|reserved_token_9|>",
    "=" * 9,
]


@pytest.fixture(scope="module")
def vocabulary() -> list[bytes]:
    return train()


@pytest.fixture(scope="module")
def directory(vocabulary: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("kimi"), vocabulary)


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer(directory)


@pytest.fixture(scope="module")
def theirs(vocabulary: list[bytes]) -> tiktoken.Encoding:
    return encoding(vocabulary)


def _assert_same(text: str, tokenizer: Tokenizer, theirs: tiktoken.Encoding) -> None:
    ids = theirs.encode(text, allowed_special="all")
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_the_vocabulary_has_tokens_of_several_bytes(tokenizer: Tokenizer, vocabulary: list[bytes]) -> None:
    assert len(vocabulary) == SIZE
    assert len(tokenizer.encode("我们今天去北京大学。")) < 10


@pytest.mark.parametrize("text", [*TEXTS, f"a{WHOLE} b{WHOLE}{WHOLE}"])
def test_hard_texts_become_the_tokens_of_tiktoken(text: str, tokenizer: Tokenizer, theirs: tiktoken.Encoding) -> None:
    _assert_same(text, tokenizer, theirs)


def test_every_kind_of_character_is_divided_alike(tokenizer: Tokenizer, theirs: tiktoken.Encoding) -> None:
    by_category: dict[str, list[str]] = {}
    for character in map(chr, range(0x30000)):
        by_category.setdefault(unicodedata.category(character), []).append(character)
    for category in by_category.keys() - {"Cs", "Cn", "Co"}:
        characters = by_category[category]
        for character in random.Random(category).sample(characters, min(40, len(characters))):
            _assert_same(f"a{character}B {character}1'{character}\n{character} {character * 2}", tokenizer, theirs)


@pytest.mark.parametrize("piece", ["a", " ", "=", "你", "\n", "aB"])
def test_runs_become_the_tokens_of_tiktoken(piece: str, tokenizer: Tokenizer, theirs: tiktoken.Encoding) -> None:
    for length in range(1, 60):
        _assert_same(piece * length, tokenizer, theirs)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(_PIECES), max_size=25).map("".join)))
def test_any_text_becomes_the_tokens_of_tiktoken(tokenizer: Tokenizer, theirs: tiktoken.Encoding, text: str) -> None:
    _assert_same(text, tokenizer, theirs)


def test_special_tokens_in_a_text_are_tokens_and_no_part_of_the_answer(
    tokenizer: Tokenizer, vocabulary: list[bytes]
) -> None:
    first = len(vocabulary)
    ids = tokenizer.encode("<|im_user|>a<|tool_call_begin|><|im_end|>")
    assert [token_id - first for token_id in ids if token_id >= first] == [3, 5, 2]
    assert tokenizer.decode(ids) == "a<|tool_call_begin|>"
    assert tokenizer.encode(f"<|reserved_token_{first + 9}|>") == [first + 9]
    # the model has no row for the last two of the 258
    assert len(tokenizer.encode(f"<|reserved_token_{first + 257}|>")) > 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(_PIECES), min_size=1, max_size=20).map("".join), st.randoms())
def test_streamed_text_is_the_text(
    tokenizer: Tokenizer, theirs: tiktoken.Encoding, text: str, randomness: random.Random
) -> None:
    ids = theirs.encode(text, allowed_special="all")
    stream, pieces = Detokenizer(tokenizer, skip_special_tokens=False), []
    while ids:
        number = randomness.randint(1, 3)
        pieces.append(stream.add(ids[:number]))
        assert text.startswith("".join(pieces))
        ids = ids[number:]
    assert "".join(pieces) + stream.finish() == text


def test_a_character_of_several_tokens_is_sent_once_it_is_whole(
    tokenizer: Tokenizer, theirs: tiktoken.Encoding
) -> None:
    ids = theirs.encode("𓀀")
    stream = Detokenizer(tokenizer)
    assert len(ids) > 1
    assert [stream.add([token_id]) for token_id in ids] == [""] * (len(ids) - 1) + ["𓀀"]


def test_the_expression_is_a_constant_of_the_code_which_is_not_run(vocabulary: list[bytes], tmp_path: Path) -> None:
    directory = write(tmp_path, vocabulary)
    (directory / "tokenization_kimi.py").write_text(_CODE)
    tokenizer = Tokenizer(directory)
    assert tokenizer.encode("12") == [*tokenizer.encode("1"), *tokenizer.encode("2")]
    assert len(tokenizer.encode("= =")) > 1


def _model(text: bytes) -> Damage:
    return lambda directory: (directory / "tiktoken.model").write_bytes(text)


def _more(line: bytes) -> Damage:
    return lambda directory: (directory / "tiktoken.model").open("ab").write(line)


def _code(text: str) -> Damage:
    return lambda directory: (directory / "tokenization_kimi.py").write_text(text)


def _added(key: str, value: object) -> Damage:
    def damage(directory: Path) -> None:
        path = directory / "tokenizer_config.json"
        config = json.loads(path.read_text())
        config["added_tokens_decoder"][key] = value
        path.write_text(json.dumps(config))

    return damage


_DAMAGES: dict[str, tuple[Damage, str]] = {
    "a line without a rank": (_more(b"YWJj\n"), "tiktoken.model: line 401 must be a token in base64 and its rank"),
    "no base64": (_more(b"YWJjZ 400\n"), "line 401 must be a token"),
    "a rank that is left out": (_more(b"YWJjZGVmZ2hp 402\n"), "ranks must count up from 0"),
    "a token twice": (_more(b"YQ== 400\n"), "tokens must be different"),
    "no single bytes": (_model(b"YWI= 0\n"), "no token for the byte"),
    "a token without content": (_added("400", {"special": True}), "added_tokens_decoder.400 must be a token"),
    "an id of the vocabulary": (
        _added("5", {"content": "x"}),
        "added_tokens_decoder.5 must be .* with an id from 400 to 657",
    ),
    "a name twice": (_added("410", {"content": "[BOS]"}), "two tokens of one name"),
    "code that is none": (_code("class"), "tokenization_kimi.py: is no Python file"),
    "an expression that is none": (_code("pat_str = '('"), "pat_str of the tokenizer's Python file, '\\('"),
    "code without the expression": (_code("pat_str = other()"), "has no pat_str that is a constant"),
}


@pytest.mark.parametrize("name", _DAMAGES)
def test_damaged_files_are_refused_in_a_sentence(name: str, vocabulary: list[bytes], tmp_path: Path) -> None:
    damage, message = _DAMAGES[name]
    damage(write(tmp_path, vocabulary))
    with pytest.raises((ModelError, ConfigError), match=message):
        Tokenizer(tmp_path)


def test_the_code_of_another_tokenizer_is_not_guessed(vocabulary: list[bytes], tmp_path: Path) -> None:
    directory = write(tmp_path, vocabulary, auto_map={"AutoTokenizer": ["tokenization_other.Other", None]})
    with pytest.raises(ModelError, match="is a tiktoken vocabulary, which does not say how texts are divided"):
        Tokenizer(directory)
