"""Finds stop texts in tokens as they are generated, across the borders of tokens. detokenizer.py cuts the text.

A generation ends with the token that completes a stop text, the token at which transformers' StopStringCriteria ends
it. If one token completes several stop texts, the one that ends first counts, and of those that end together the
longest. So the result does not depend on the borders of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gpu_service.text.tokenizer import Tokenizer


class Pattern:
    """A text to find in another text that comes piece by piece (Knuth, Morris and Pratt's algorithm)."""

    def __init__(self, text: str | bytes) -> None:
        self.text = text
        # for each matched length, the length of the longest proper prefix that the match ends with
        self._fallback = [0, 0]
        for symbol in text[1:]:
            self._fallback.append(self._step(self._fallback[-1], symbol))

    def advance(self, matched: int, symbol: object) -> int:
        """The length that matches after one more character or byte; len(text) if all of it does."""
        return self._step(self._fallback[matched] if matched == len(self.text) else matched, symbol)

    def _step(self, matched: int, symbol: object) -> int:
        while matched and self.text[matched] != symbol:
            matched = self._fallback[matched]
        return matched + int(self.text[matched] == symbol)


@dataclass(frozen=True, slots=True)
class Found:
    """How a generation's text ends, for cutting it off."""

    stop: str
    """The stop text, without the names of special tokens."""
    rest: str
    """The text of its last token after the stop text."""


class StopStrings:
    """The stop texts of one request."""

    def __init__(
        self,
        strings: Sequence[str],
        tokenizer: Tokenizer,
        *,
        include: bool,
        min_tokens: int = 0,
        skip_special_tokens: bool = True,
    ) -> None:
        """Prepares the search.

        Args:
            strings: The stop texts, none of them empty.
            tokenizer: Spells the tokens.
            include: Whether the text is cut after the stop text rather than before it.
            min_tokens: The number of tokens before which no stop text counts.
            skip_special_tokens: Whether special tokens are left out of the text.
        """
        self.strings = tuple(dict.fromkeys(strings))
        self.include = include
        self.min_tokens = min_tokens
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        # the longest first, since of those that end together the longest counts
        longest_first = sorted(self.strings, key=lambda text: -len(text.encode()))
        self.patterns = [(text, Pattern(text.encode())) for text in longest_first]
        self.text_patterns = [Pattern(text) for text in self.strings]
        """The same as texts of characters. All generations of the request share them."""

    def matcher(self) -> "StopMatcher":
        """A matcher for one generation."""
        return StopMatcher(self, self._tokenizer)

    def locate(self, token_ids: Sequence[int], stop: str) -> Found:
        """Locates the stop text that the last of these tokens completed."""
        target = stop.encode()
        before, visible = self._end_of(token_ids[:-1], len(target) - 1)
        last = self._tokenizer.token_bytes(token_ids[-1]) or b""
        text = before + last
        visible += [self._is_visible(token_ids[-1])] * len(last)
        begin = text.find(target, max(len(before) - len(target) + 1, 0))
        end = begin + len(target)

        def seen(first: int, beyond: int) -> str:
            shown = zip(text[first:beyond], visible[first:beyond], strict=True)
            return bytes(byte for byte, is_text in shown if is_text).decode(errors="replace")

        return Found(stop=seen(begin, end), rest=seen(end, len(text)))

    def _end_of(self, token_ids: Sequence[int], num_bytes: int) -> tuple[bytes, list[bool]]:
        """At least the last `num_bytes` bytes of tokens, and for each whether it is text rather than a token's name."""
        text, visible = b"", list[bool]()
        for token_id in reversed(token_ids):
            if len(text) >= num_bytes or (spelt := self._tokenizer.token_bytes(token_id)) is None:
                break
            text = spelt + text
            visible = [self._is_visible(token_id)] * len(spelt) + visible
        return text, visible

    def _is_visible(self, token_id: int) -> bool:
        return not (self._skip_special_tokens and self._tokenizer.is_special(token_id))


class StopMatcher:
    """Finds stop texts in the tokens of one generation."""

    def __init__(self, stop: StopStrings, tokenizer: Tokenizer) -> None:
        self._stop = stop
        self._tokenizer = tokenizer
        self._matched = [0] * len(stop.patterns)
        self._num_tokens = 0

    def add(self, token_id: int) -> str | None:
        """Returns the stop text that this token completes, if any."""
        self._num_tokens += 1
        found: str | None = None
        text = self._tokenizer.token_bytes(token_id)
        if text is None:  # the tokenizer does not know the token, so no stop text spans it
            self._matched = [0] * len(self._matched)
            return None
        for byte in text:
            for number, (stop, pattern) in enumerate(self._stop.patterns):
                self._matched[number] = matched = pattern.advance(self._matched[number], byte)
                if matched == len(pattern.text) and found is None:
                    found = stop
        return None if found is None or self._num_tokens < self._stop.min_tokens else found
