"""OpenMoE's tokenizer from its checkpoints' files, and DeepSeek-MoE's."""

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Rust

from gpu_service.errors import ModelError
from gpu_service.text.tokenizer import Tokenizer
from tests.support import published


@pytest.fixture(scope="module")
def openmoe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.write("openmoe", tmp_path_factory.mktemp("openmoe"))


def _pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([token], skip_special_tokens=False) for token in tokenizer.encode(text)]


def test_a_text_begins_with_the_padding_token_and_has_no_end(openmoe: Path) -> None:
    tokenizer = Tokenizer(openmoe)
    ids = tokenizer.encode("where the experts")
    assert ids[0] == 0
    assert 1 not in ids
    assert tokenizer.encode("where the experts", add_special_tokens=False) == ids[1:]
    assert tokenizer.is_special(0)
    assert tokenizer.decode(ids) == "where the experts"


def test_the_likeliest_pieces_are_chosen(openmoe: Path) -> None:
    tokenizer = Tokenizer(openmoe)
    # one piece of score -2 beats two of -2 each; a word without a piece is spelt out
    assert _pieces(tokenizer, "the experts") == ["<pad>", "the", "experts"]
    assert _pieces(tokenizer, "the ex")[2:] == ["", "e", "x"]


def test_spaces_in_excess_are_dropped_as_sentencepiece_does(openmoe: Path) -> None:
    tokenizer = Tokenizer(openmoe)
    assert tokenizer.encode("  where   the experts ") == tokenizer.encode("where the experts")


def test_what_no_piece_covers_is_unknown_or_bytes(openmoe: Path, tmp_path: Path) -> None:
    assert 3 in Tokenizer(openmoe).encode("é")
    spelling = shutil.copytree(openmoe, tmp_path / "spelling")
    published.write_openmoe_tokenizer(spelling, byte_fallback=True)
    tokenizer = Tokenizer(spelling)
    ids = tokenizer.encode("the é")
    assert tokenizer.decode(ids) == "the é"
    assert b"".join(tokenizer.token_bytes(token) or b"" for token in ids[1:]).decode() == " the é"


def test_a_tokenizer_json_comes_first_and_gets_the_padding_token_too(openmoe: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(openmoe, tmp_path / "json")
    Tokenizer(openmoe)._tokenizer.backend_tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "spiece.model").unlink()
    assert Tokenizer(directory).encode("the experts") == Tokenizer(openmoe).encode("the experts")


def test_what_is_missing_or_wrong_is_named(openmoe: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(openmoe, tmp_path / "without")
    (directory / "spiece.model").write_bytes(b"\xff\xff nothing")
    with pytest.raises(ModelError, match=r"spiece\.model is not a sentencepiece model"):
        Tokenizer(directory)
    (directory / "spiece.model").unlink()
    with pytest.raises(ModelError, match=r"neither tokenizer\.json nor spiece\.model"):
        Tokenizer(directory)


def test_deepseek_s_byte_level_tokenizer_is_not_taken_for_llama_s(tmp_path: Path) -> None:
    directory = published.write("deepseek", tmp_path / "deepseek")
    text = "the experts, 専門家:\n  x += 1"
    ids = Tokenizer(directory).encode(text)
    assert ids == Rust.from_file(str(directory / "tokenizer.json")).encode(text).ids
    assert ids[0] == 1
    assert Tokenizer(directory).decode(ids) == text
