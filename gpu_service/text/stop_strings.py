"""Finds stop texts in tokens as they are made, wherever tokens begin and end. What is sent is text_stream.py's.

A generation ends with the token that completes a stop text: the token at which transformers' StopStringCriteria, shown
what was generated, ends it. Of stop texts that one token completes, the one that ends first counts, and of those that
end together the longest; so which one it is does not depend on where tokens begin and end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gpu_service.text.tokenizer import Tokenizer


class Pattern:
    """A text that is looked for in another one, which comes piece by piece (Knuth, Morris and Pratt)."""

    def __init__(self, text: str | bytes) -> None:
        self.text = text
        # for each length, that of the longest proper prefix that what was matched ends with
        self._fallback = [0, 0]
        for symbol in text[1:]:
            self._fallback.append(self._step(self._fallback[-1], symbol))

    def advance(self, matched: int, symbol: object) -> int:
        """How much of the text matches, now that one more character or byte has come; len(text): all of it."""
        return self._step(self._fallback[matched] if matched == len(self.text) else matched, symbol)

    def _step(self, matched: int, symbol: object) -> int:
        while matched and self.text[matched] != symbol:
            matched = self._fallback[matched]
        return matched + int(self.text[matched] == symbol)


@dataclass(frozen=True, slots=True)
class Found:
    """Where the end of a generation's text is cut off."""

    stop: str
    """The stop text, without what special tokens are called."""
    rest: str
    """What its last token brought after it."""


class StopStrings:
    """The stop texts of one request."""

    def __init__(self, strings: Sequence[str], tokenizer: Tokenizer, include: bool, min_tokens: int = 0) -> None:
        """Prepares the search.

        Args:
            strings: None of them empty.
            tokenizer: Spells the tokens.
            include: Whether the text ends with the stop text, and not before it.
            min_tokens: How many tokens are made before one may complete a stop text.
        """
        self.strings = tuple(dict.fromkeys(strings))
        self.include = include
        self.min_tokens = min_tokens
        self._tokenizer = tokenizer
        # the longest first: of those that end together it counts
        longest_first = sorted(self.strings, key=lambda text: -len(text.encode()))
        self.patterns = [(text, Pattern(text.encode())) for text in longest_first]
        self.text_patterns = [Pattern(text) for text in self.strings]
        """The same as texts of characters; all of a request's generations are watched with them."""

    def matcher(self) -> "StopMatcher":
        """Watches one generation."""
        return StopMatcher(self, self._tokenizer)

    def locate(self, token_ids: Sequence[int], stop: str) -> Found:
        """Where a stop text is that the last of these tokens completed."""
        target = stop.encode()
        before, visible = self._end_of(token_ids[:-1], len(target) - 1)
        last = self._tokenizer.token_bytes(token_ids[-1]) or b""
        text = before + last
        visible += [not self._tokenizer.is_special(token_ids[-1])] * len(last)
        begin = text.find(target, max(len(before) - len(target) + 1, 0))
        end = begin + len(target)

        def seen(first: int, beyond: int) -> str:
            shown = zip(text[first:beyond], visible[first:beyond], strict=True)
            return bytes(byte for byte, is_text in shown if is_text).decode(errors="replace")

        return Found(stop=seen(begin, end), rest=seen(end, len(text)))

    def _end_of(self, token_ids: Sequence[int], num_bytes: int) -> tuple[bytes, list[bool]]:
        """The last bytes of tokens, at least so many, and of each whether it is text rather than a token's name."""
        text, visible = b"", list[bool]()
        for token_id in reversed(token_ids):
            if len(text) >= num_bytes or (spelt := self._tokenizer.token_bytes(token_id)) is None:
                break
            text = spelt + text
            visible = [not self._tokenizer.is_special(token_id)] * len(spelt) + visible
        return text, visible


class StopMatcher:
    """Watches the tokens of one generation."""

    def __init__(self, stop: StopStrings, tokenizer: Tokenizer) -> None:
        self._stop = stop
        self._tokenizer = tokenizer
        self._matched = [0] * len(stop.patterns)
        self._num_tokens = 0

    def add(self, token_id: int) -> str | None:
        """Returns the stop text that this token completes."""
        self._num_tokens += 1
        found: str | None = None
        text = self._tokenizer.token_bytes(token_id)
        if text is None:  # the tokenizer does not know it, and nothing goes across it
            self._matched = [0] * len(self._matched)
            return None
        for byte in text:
            for number, (stop, pattern) in enumerate(self._stop.patterns):
                self._matched[number] = matched = pattern.advance(self._matched[number], byte)
                if matched == len(pattern.text) and found is None:
                    found = stop
        return None if found is None or self._num_tokens < self._stop.min_tokens else found
