"""Every kind of decoder: what is streamed is what all tokens decode to, and nothing but parts of characters waits."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from gpu_service.text.detokenizer import Detokenizer
from gpu_service.text.tokenizer import Tokenizer

_SPECIAL = ["<unk>", "<s>", "</s>"]
_WORDS = [
    "▁",
    "▁the",
    "the",
    "##the",
    " ",
    "  ",
    "a",
    "a</w>",
    "n't",
    "'",
    ".",
    "|",
    "<pad>",
    "▁é",
    "🙂",
    "\ufffd",
    "##",
]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_CHARACTERS: dict[int, str] = bytes_to_unicode()  # type: ignore[no-untyped-call]


def _level(data: bytes) -> str:
    """How a byte-level vocabulary spells bytes."""
    return "".join(_CHARACTERS[byte] for byte in data)


_PARTS = "水車".encode()
_LEVEL = [*_CHARACTERS.values(), *map(_level, (b" the", _PARTS[:2], _PARTS[2:4], _PARTS[:4], _PARTS[4:]))]
_FALLBACK = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
GROWING: dict[str, Callable[[], Any]] = {
    "ByteLevel": decoders.ByteLevel,
    "Metaspace": decoders.Metaspace,
    "Metaspace never": lambda: decoders.Metaspace(prepend_scheme="never"),
    "WordPiece": decoders.WordPiece,
    "WordPiece plain": lambda: decoders.WordPiece(cleanup=False),
    "BPE": lambda: decoders.BPEDecoder(suffix="</w>"),
    "CTC": decoders.CTC,
    "CTC plain": lambda: decoders.CTC(cleanup=False),
    "Replace": lambda: decoders.Replace("the", "a"),
    "Strip": lambda: decoders.Strip(" ", 1, 0),
    "ByteFallback": lambda: decoders.Sequence([*_FALLBACK, decoders.Strip(" ", 1, 0)]),
    "ByteFallback, more spaces": lambda: decoders.Sequence([*_FALLBACK, decoders.Strip(" ", 3, 0)]),
    "ByteFallback and Metaspace": lambda: decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
    "nothing": lambda: None,
}
CHANGING: dict[str, Callable[[], Any]] = {
    "Replace after Fuse": lambda: decoders.Sequence([decoders.Fuse(), decoders.Replace("athe", "x")]),
    "a pattern after Fuse": lambda: decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex("a+"), "x")]),
    "WordPiece after Fuse": lambda: decoders.Sequence([decoders.Fuse(), decoders.WordPiece()]),
    "Replace after ByteFallback": lambda: decoders.Sequence([decoders.ByteFallback(), decoders.Replace("ab", "x")]),
}


def _vocabulary(decoder: Any) -> list[str]:
    if isinstance(decoder, decoders.ByteLevel):
        return [*_SPECIAL, *_LEVEL]
    return [*_SPECIAL, *_WORDS, *_BYTES]


def _make(directory: Path, decoder: Any, **more: Any) -> tuple[Tokenizer, Backend, int]:
    """A tokenizer, the same of the tokenizers library, and the number of its tokens."""
    words = _vocabulary(decoder)
    backend = Backend(models.WordLevel({word: position for position, word in enumerate(words)}, unk_token="<unk>"))
    if decoder is not None:
        backend.decoder = decoder
    backend.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=backend, **names, **more)  # type: ignore[no-untyped-call]
    fast.save_pretrained(directory)
    return Tokenizer(directory), backend, len(words)


@pytest.fixture(scope="module", params=GROWING)
def growing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Backend, int]:
    return _make(tmp_path_factory.mktemp("growing"), GROWING[request.param]())


def _ids(backend: Backend, *tokens: str) -> list[int]:
    ids = [backend.token_to_id(token) for token in tokens]
    assert None not in ids
    return [each for each in ids if each is not None]


def _is_whole(text: str) -> bool:
    return "\ufffd" not in text


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), num_tokens=st.integers(1, 40), size=st.integers(1, 4))
def test_pieces_join_to_the_text_and_only_a_part_of_a_character_waits(
    growing: tuple[Tokenizer, Backend, int], seed: int, num_tokens: int, size: int
) -> None:
    tokenizer, backend, num_words = growing
    draw = random.Random(seed)
    some = draw.sample(range(num_words), 6)  # few, so that they repeat
    ids = [draw.choice(some) if draw.random() < 0.7 else draw.randrange(num_words) for _ in range(num_tokens)]
    detokenizer, sent = Detokenizer(tokenizer), ""
    for begin in range(0, num_tokens, size):
        sent += detokenizer.add(ids[begin : begin + size])
        so_far = tokenizer.decode(ids[: begin + size])
        assert so_far.startswith(sent)
        waiting = so_far.removeprefix(sent)
        assert waiting == "\ufffd" * len(waiting)
        assert len(waiting) <= 3
    decoded = tokenizer.decode(ids)
    assert sent + detokenizer.finish() == decoded
    if _is_whole(theirs := backend.decode(ids)):
        assert decoded == theirs


def test_whole_characters_beside_wrong_bytes_stay(tmp_path: Path) -> None:
    tokenizer, backend, _ = _make(tmp_path, GROWING["ByteFallback"]())
    ids = _ids(backend, *(f"<0x{byte:02X}>" for byte in [0xFF, *_PARTS, 0xF0, 0x9F, 0xC3]))
    assert backend.decode(ids) == "\ufffd" * 10
    assert tokenizer.decode(ids) == "\ufffd水車" + "\ufffd" * 3
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.add([each]) for each in ids] == [*"\ufffd", "", "", "水", "", "", "車", "", "", "\ufffd\ufffd"]
    assert detokenizer.finish() == "\ufffd"


def test_a_token_with_a_whole_character_and_a_part_sends_the_whole_one(tmp_path: Path) -> None:
    tokenizer, backend, _ = _make(tmp_path, decoders.ByteLevel())
    ids = _ids(backend, _level(_PARTS[:4]), _level(_PARTS[4:]))
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.add([each]) for each in ids] == ["水", "車"]


def test_wrong_bytes_of_a_byte_level_vocabulary_are_sent(tmp_path: Path) -> None:
    """They used to wait for a character, for as long as none came."""
    tokenizer, backend, _ = _make(tmp_path, decoders.ByteLevel())
    (wrong,) = _ids(backend, _level(b"\x80"))
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.add([wrong]) for _ in range(5)] == ["\ufffd"] * 5


def test_spaces_that_only_a_beginning_loses_stay_in_the_middle(tmp_path: Path) -> None:
    tokenizer, backend, _ = _make(tmp_path, GROWING["ByteFallback, more spaces"]())
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.add([each]) for each in _ids(backend, " ", "a", " ", " ", "a")]
    assert pieces == ["", "a", " ", " ", "a"]


@pytest.mark.parametrize("name", CHANGING)
def test_a_decoder_that_changes_earlier_text_sends_it_at_the_end(tmp_path: Path, name: str) -> None:
    tokenizer, backend, _ = _make(tmp_path, CHANGING[name]())
    ids = _ids(backend, "a", "the", "a", "a", ".")
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.add([each]) for each in ids] == [""] * 5
    assert detokenizer.finish() == tokenizer.decode(ids) == backend.decode(ids)


def test_clean_up_of_spaces_is_off_and_said_so(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        tokenizer, backend, _ = _make(tmp_path, decoders.Metaspace(), clean_up_tokenization_spaces=True)
    assert [entry["setting"] for entry in logs] == ["clean_up_tokenization_spaces"]
    ids = _ids(backend, "a", "▁", ".", "▁", "n't")
    detokenizer = Detokenizer(tokenizer)
    assert "".join(detokenizer.add([each]) for each in ids) == tokenizer.decode(ids) == "a . n't"
