from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, StopStringCriteria

from gpu_service.text.stop_strings import Pattern, StopStrings
from gpu_service.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def theirs(tokenizer_directory: Path) -> object:
    return AutoTokenizer.from_pretrained(tokenizer_directory)


def _end(strings: list[str], tokenizer: Tokenizer, token_ids: list[int]) -> int | None:
    """The position of the token that ends the generation."""
    matcher = StopStrings(strings, tokenizer, include=False).matcher()
    return next((position for position, token_id in enumerate(token_ids) if matcher.add(token_id)), None)


@given(data=st.data(), token_ids=st.lists(st.integers(0, 264), min_size=1, max_size=12))
def test_a_generation_ends_where_transformers_ends_it(
    tokenizer: Tokenizer, theirs: object, data: st.DataObject, token_ids: list[int]
) -> None:
    """Stop texts are parts of what random tokens spell, special ones included, or random strings of its characters."""
    spelt = b"".join(tokenizer.token_bytes(token_id) or b"" for token_id in token_ids).decode(errors="ignore")
    cut = st.tuples(st.integers(0, len(spelt)), st.integers(1, 5)).map(lambda each: spelt[each[0] :][: each[1]])
    drawn = st.text(alphabet=sorted(set(spelt)) or "a", min_size=1, max_size=4)
    strings = data.draw(st.lists(cut.filter(bool) | drawn, min_size=1, max_size=3, unique=True))
    criteria = StopStringCriteria(theirs, strings)  # type: ignore[arg-type]
    expected = next(
        (end for end in range(len(token_ids)) if criteria(torch.tensor([token_ids[: end + 1]]), None).item()), None
    )
    assert _end(strings, tokenizer, token_ids) == expected


@given(text=st.text(alphabet="ab", max_size=30), looked_for=st.text(alphabet="ab", min_size=1, max_size=6))
def test_a_pattern_knows_how_much_of_it_a_text_ends_with(text: str, looked_for: str) -> None:
    pattern, matched = Pattern(looked_for), 0
    for end, character in enumerate(text, 1):
        matched = pattern.advance(matched, character)
        assert matched == max(size for size in range(len(looked_for) + 1) if text[:end].endswith(looked_for[:size]))


def test_of_stop_texts_that_end_together_the_longest_counts(tokenizer: Tokenizer) -> None:
    for strings in (["b", "ab"], ["ab", "b"]):
        matcher = StopStrings(strings, tokenizer, include=False).matcher()
        found = [matcher.add(token_id) for token_id in tokenizer.encode("tab", add_special_tokens=False)]
        assert found[-1] == "ab"


def test_a_token_that_the_tokenizer_does_not_know_parts_a_stop_text(tokenizer: Tokenizer) -> None:
    a, b = (tokenizer.encode(text, add_special_tokens=False)[-1] for text in "ab")
    assert _end(["ab"], tokenizer, [a, b]) == 1
    assert _end(["ab"], tokenizer, [a, 100_000, b]) is None


def test_no_stop_text_ends_a_generation_before_min_tokens(tokenizer: Tokenizer) -> None:
    a = tokenizer.encode("ta", add_special_tokens=False)[-1]
    matcher = StopStrings(["a"], tokenizer, include=False, min_tokens=3).matcher()
    assert [matcher.add(a) for _ in range(3)] == [None, None, "a"]
