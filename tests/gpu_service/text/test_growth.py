"""How much longer a tokenizer's own steps may make a text, found without running them."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, decoders, normalizers

from gpu_service.errors import ModelError
from gpu_service.text.growth import growth_of
from gpu_service.text.tokenizer import Tokenizer, TokenizerError
from tests.support.checkpoints import write_tokenizer


class _Tokenizer:
    def __init__(self, normalizer: Any, decoder: Any = None) -> None:
        self.backend_tokenizer = self
        self.normalizer, self.decoder = normalizer, decoder


def _growth(normalizer: Any, decoder: Any = None) -> float:
    return growth_of(_Tokenizer(normalizer, decoder))  # type: ignore[arg-type]


class _Step:
    """A step of the tokenizers library, by its state. The library itself flattens sequences, and writes no charsmap."""

    def __init__(self, state: dict[str, Any]) -> None:
        self._state = state

    def __getstate__(self) -> bytes:
        return json.dumps(self._state).encode()


_THOUSAND = normalizers.Replace("a", "a" * 1000)
_SHORTER = normalizers.Replace("bbbb", "b")


@pytest.mark.parametrize(
    ("normalizer", "growth"),
    [
        (None, 1),
        (normalizers.Replace(" ", "▁"), 1),
        (normalizers.Replace("``", '"'), 1),
        (normalizers.Replace(Regex(" {2,}"), " "), 1),
        (normalizers.Replace("ab", "x" * 10), 5),
        (normalizers.Replace(Regex("a"), "x" * 10), 10),
        (normalizers.Prepend("▁"), 2),
        (normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]), 18),
        (normalizers.Replace(Regex("ab"), "x" * 10), 10),
        (normalizers.Sequence([_SHORTER, _THOUSAND]), 1000),
    ],
)
def test_the_growth_of_each_step_is_that_of_its_text(normalizer: Any, growth: float) -> None:
    assert _growth(normalizer) == growth


def test_a_sequence_in_a_sequence_grows_as_all_its_steps() -> None:
    replace = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    inner = {"type": "Sequence", "normalizers": [replace, replace]}
    assert _growth(_Step({"type": "Sequence", "normalizers": [replace, inner]})) == 1e9


def test_a_charsmap_grows_as_its_longest_text() -> None:
    trie = b"t" * 50
    charsmap = len(trie).to_bytes(4, "little") + trie + b"short\0" + b"x" * 40 + b"\0"
    step = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
    assert _growth(_Step(step)) == 40


def test_decoders_grow_as_well() -> None:
    many = decoders.Replace("a", "a" * 1000)
    assert _growth(None, decoders.Sequence([many, many, decoders.Fuse()])) == 1e6


def _write(directory: Path, *, size: int, times: int) -> None:
    write_tokenizer(directory)
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * size}
    content["normalizer"] = {"type": "Sequence", "normalizers": [step] * times}
    path.write_text(json.dumps(content))


def test_a_tokenizer_that_lengthens_texts_without_bound_is_refused_before_it_is_run(tmp_path: Path) -> None:
    _write(tmp_path, size=1000, times=3)
    with pytest.raises(ModelError, match=r"may make a text 1e\+09 times as long, and 1000 is the most here"):
        Tokenizer(tmp_path)


def test_a_text_whose_normalized_form_may_take_too_much_memory_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, size=500, times=1)
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.encode("a", add_special_tokens=False)
    with pytest.raises(TokenizerError, match="may have more than 268435456 characters"):
        tokenizer.encode("b" * 600_000)
