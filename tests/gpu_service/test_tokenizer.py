from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from gpu_service.tokenizer import Detokenizer, Tokenizer
from tests import checkpoints

DEMO = Path(__file__).parents[2] / "models" / "demo"


def _byte_level(directory: Path) -> Tokenizer:
    checkpoints.write_tokenizer(directory)
    return Tokenizer(directory)


def _byte_fallback(directory: Path) -> Tokenizer:
    """Laid out like a converted sentencepiece model: words with a leading space, bytes for what has no token."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "a", "b", "é", "the"]
    vocabulary = {word: number for number, word in enumerate([*words, "t", "h", "e", "th"])}
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    raw = RawTokenizer(models.BPE(vocabulary, merges, byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>")  # type: ignore[no-untyped-call]
    fast.save_pretrained(directory)
    return Tokenizer(directory)


@pytest.fixture(
    scope="module",
    params=[_byte_level, _byte_fallback, lambda _: Tokenizer(DEMO)],
    ids=["byte level", "byte fallback", "demo"],
)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    make: Callable[[Path], Tokenizer] = request.param
    return make(tmp_path_factory.mktemp("tokenizer"))


def _stream(tokenizer: Tokenizer, token_ids: list[int], sizes: list[int]) -> list[str]:
    """The pieces of text, for tokens that come in groups of these sizes and then one by one."""
    detokenizer = Detokenizer(tokenizer)
    pieces, position = [], 0
    while position < len(token_ids):
        size = sizes.pop() if sizes else 1
        pieces.append(detokenizer.add(token_ids[position : position + size]))
        position += size
    return [*pieces, detokenizer.finish()]


@given(token_ids=st.lists(st.integers(0, 264), max_size=40), sizes=st.lists(st.integers(0, 5), max_size=10))
def test_pieces_of_any_tokens_join_to_what_they_decode_to(
    tokenizer: Tokenizer, token_ids: list[int], sizes: list[int]
) -> None:
    assert "".join(_stream(tokenizer, token_ids, sizes)) == tokenizer.decode(token_ids)


@given(text=st.text(max_size=20))
def test_no_piece_splits_a_character(tokenizer: Tokenizer, text: str) -> None:
    token_ids = tokenizer.encode(text)
    pieces = _stream(tokenizer, token_ids, [])
    assert "".join(pieces) == tokenizer.decode(token_ids)
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in pieces)


def test_an_emoji_comes_whole_and_words_come_at_once(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    emoji = tokenizer.encode("🙂")
    words = tokenizer.encode(" the")
    pieces = [detokenizer.add([token]) for token in [*words, *emoji, *words]]
    assert "🙂" in "".join([*pieces, detokenizer.finish()])
    assert pieces[len(words) - 1].strip()


def test_special_tokens_are_no_text(tokenizer: Tokenizer) -> None:
    assert "".join(_stream(tokenizer, [1, *tokenizer.encode("a"), 2], [])).strip() == "a"


def test_a_directory_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)):
        Tokenizer(tmp_path)
