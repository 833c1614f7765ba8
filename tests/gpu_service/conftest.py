"""Tokenizers of the three kinds that spell characters differently, and how many threads PyTorch has."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from gpu_service.text.tokenizer import Tokenizer
from tests.support import checkpoints
from tests.support.pairs import DEMO


def _byte_level(directory: Path) -> Path:
    checkpoints.write_tokenizer(directory)
    return directory


def _byte_fallback(directory: Path) -> Path:
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
    return directory


@pytest.fixture(
    scope="session",
    params=[_byte_level, _byte_fallback, lambda _: DEMO],
    ids=["byte level", "byte fallback", "demo"],
)
def tokenizer_directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    write: Callable[[Path], Path] = request.param
    return write(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_directory: Path) -> Tokenizer:
    return Tokenizer(tokenizer_directory)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
