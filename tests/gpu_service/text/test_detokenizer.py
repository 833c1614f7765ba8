import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_service.text.detokenizer import Detokenizer, TextStream
from gpu_service.text.stop_strings import StopStrings
from gpu_service.text.tokenizer import Tokenizer


def _groups(token_ids: list[int], sizes: list[int]) -> list[list[int]]:
    """Splits tokens into groups of these sizes, and the rest into groups of one."""
    groups, position, sizes = [], 0, list(sizes)
    while position < len(token_ids):
        size = sizes.pop() if sizes else 1
        groups.append(token_ids[position : position + size])
        position += size
    return groups


def _stream(tokenizer: Tokenizer, token_ids: list[int], sizes: list[int], skips: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skips)
    return [*(detokenizer.add(group) for group in _groups(token_ids, sizes)), detokenizer.finish()]


@given(
    token_ids=st.lists(st.integers(0, 264), max_size=40),
    sizes=st.lists(st.integers(0, 5), max_size=10),
    skips=st.booleans(),
)
def test_pieces_of_any_tokens_join_to_what_they_decode_to(
    tokenizer: Tokenizer, token_ids: list[int], sizes: list[int], skips: bool
) -> None:
    assert "".join(_stream(tokenizer, token_ids, sizes, skips)) == tokenizer.decode(token_ids, skips)


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


def _generate(tokenizer: Tokenizer, text: str, stop: StopStrings, sizes: list[int]) -> tuple[str, str | None, str]:
    """What is streamed if a model generates the text, which stop text ends it, and what its tokens decode to."""
    matcher, made, found = stop.matcher(), list[int](), None
    for token_id in tokenizer.encode(text, add_special_tokens=False):
        made.append(token_id)
        if found := matcher.add(token_id):
            break
    stream = TextStream(tokenizer, stop)
    pieces = [stream.add(group) for group in _groups(made, sizes)]
    return "".join([*pieces, stream.finish(found)]), found, tokenizer.decode(made)


_TEXTS = st.text(alphabet="abté 🙂", max_size=25)
_STOPS = st.lists(st.text(alphabet="abté🙂", min_size=1, max_size=4), min_size=1, max_size=3)


@given(text=_TEXTS, strings=_STOPS, include=st.booleans(), sizes=st.lists(st.integers(1, 5), max_size=10))
def test_the_text_ends_at_the_stop_text_however_tokens_come(
    tokenizer: Tokenizer, text: str, strings: list[str], include: bool, sizes: list[int]
) -> None:
    streamed, found, decoded = _generate(tokenizer, text, StopStrings(strings, tokenizer, include=include), sizes)
    ends = {decoded.find(string) + len(string): string for string in sorted(strings, key=len) if string in decoded}
    if not ends:
        assert (streamed, found) == (decoded, None)
        return
    end = min(ends)
    assert found == ends[end], "the one that ends first, and the longest of those that end together"
    assert streamed == decoded[: end if include else end - len(ends[end])]


@given(text=_TEXTS, strings=_STOPS)
def test_what_is_held_back_is_what_may_begin_a_stop_text(tokenizer: Tokenizer, text: str, strings: list[str]) -> None:
    stop = StopStrings(strings, tokenizer, include=False)
    plain, stream, matcher = Detokenizer(tokenizer), TextStream(tokenizer, stop), stop.matcher()
    certain = sent = ""
    for token_id in tokenizer.encode(text, add_special_tokens=False):
        if matcher.add(token_id):
            return
        certain += plain.add([token_id])
        sent += stream.add([token_id])
        longest = max(
            size for string in strings for size in range(len(string)) if certain.endswith(string[:size]) or not size
        )
        assert sent == certain[: len(certain) - longest]
    assert sent + stream.finish() == certain + plain.finish()


def test_stop_texts_before_min_tokens_are_text(tokenizer: Tokenizer) -> None:
    stop = StopStrings(["b"], tokenizer, include=False, min_tokens=4)
    text = "abababab"
    num_tokens = len(tokenizer.encode(text, add_special_tokens=False))
    for sizes in ([], [num_tokens]):
        streamed, found, decoded = _generate(tokenizer, text, stop, sizes)
        assert found == "b"
        assert streamed == decoded[:-1]
        assert "b" in streamed


def test_a_prompt_is_text_that_no_stop_text_is_looked_for_in(tokenizer: Tokenizer) -> None:
    stop = StopStrings(["ab", "bb"], tokenizer, include=False)
    prompt, output = (tokenizer.encode(text, add_special_tokens=False) for text in ("tab", "bat"))
    stream = TextStream(tokenizer, stop, prompt)
    text = stream.prompt_text + "".join(stream.add([token_id]) for token_id in output) + stream.finish()
    assert text == tokenizer.decode([*prompt, *output])


def test_the_name_of_a_special_token_may_end_a_text_and_is_none(tokenizer: Tokenizer) -> None:
    stop = StopStrings(["b</s>"], tokenizer, include=False)
    token_ids = [*tokenizer.encode("ab", add_special_tokens=False), 2]
    matcher, stream = stop.matcher(), TextStream(tokenizer, stop)
    assert [matcher.add(token_id) for token_id in token_ids][-1] == "b</s>"
    pieces = [stream.add([token_id]) for token_id in token_ids]
    assert "".join([*pieces, stream.finish("b</s>")]).strip() == "a"


def test_a_stop_text_that_a_token_holds_twice_ends_the_text_before_the_first(tokenizer: Tokenizer) -> None:
    candidates = [(token_id, letter) for token_id in range(3, 3000) for letter in "aeost"]
    twice = [each for each in candidates if tokenizer.token_text(each[0]).count(each[1]) == 2]
    if not twice:
        pytest.skip("no token of this vocabulary does")
    token_id, letter = twice[0]
    stop = StopStrings([letter], tokenizer, include=False)
    stream = TextStream(tokenizer, stop)
    text = stream.add([token_id]) + stream.finish(letter)
    assert text == tokenizer.decode([token_id]).partition(letter)[0]


def test_a_stop_text_that_only_the_tokens_spell_takes_nothing_off(tokenizer: Tokenizer) -> None:
    """Such as the space that begins a token and is dropped at the very beginning of a text."""
    first = tokenizer.encode("the", add_special_tokens=False)[0]
    text = tokenizer.token_text(first)[:2]
    stop = StopStrings([text], tokenizer, include=False)
    stream = TextStream(tokenizer, stop)
    assert stop.matcher().add(first) == text
    assert stream.add([first]) + stream.finish(text) == tokenizer.decode([first]).partition(text)[0]


def test_of_a_stop_text_that_comes_twice_the_one_that_ended_the_generation_is_cut_off(tokenizer: Tokenizer) -> None:
    text = " experts experts"
    num_tokens = len(tokenizer.encode(text, add_special_tokens=False))
    stop = StopStrings(["ts"], tokenizer, include=False, min_tokens=num_tokens)
    streamed, found, decoded = _generate(tokenizer, text, stop, [num_tokens])
    assert (streamed, found) == (decoded[:-2], "ts")
