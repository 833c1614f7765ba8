"""Turns a generation's tokens into the text that is sent: whole characters, and nothing a stop text may cut off."""

from collections.abc import Sequence

from gpu_service.text.stop_strings import StopStrings
from gpu_service.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"


class Detokenizer:
    """Turns one generation's tokens into text as they come. The pieces, joined, are decode(all ids).

    A token's text depends on the tokens before it: a leading space is dropped at the very start, and bytes join to
    characters. So a window of tokens is decoded twice, without and with the new ones, and the difference is the new
    text. The window begins where the text was last complete.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._window_start = 0
        self._num_emitted = 0  # tokens whose text was returned

    def add(self, token_ids: Sequence[int]) -> str:
        """Returns the text that can no longer change; it may be empty."""
        self._token_ids.extend(token_ids)
        if self._tokenizer.ends_in_byte(self._token_ids[self._num_emitted :]):
            return ""  # one more byte can change the text of the whole run of bytes before it
        return self._emit(hold_incomplete=True)

    def finish(self) -> str:
        """Returns the rest."""
        return self._emit(hold_incomplete=False)

    def _emit(self, hold_incomplete: bool) -> str:
        before = self._tokenizer.decode(self._token_ids[self._window_start : self._num_emitted])
        after = self._tokenizer.decode(self._token_ids[self._window_start :])
        if hold_incomplete and (after.endswith(_REPLACEMENT) or len(after) <= len(before)):
            return ""
        self._window_start = self._num_emitted
        self._num_emitted = len(self._token_ids)
        return after[len(before) :]


class TextStream:
    """A Detokenizer that also holds back the end of the text while it may be the beginning of a stop text."""

    def __init__(self, tokenizer: Tokenizer, stop: StopStrings | None = None, prompt: Sequence[int] = ()) -> None:
        """Begins a text.

        Args:
            tokenizer: Decodes the tokens.
            stop: The stop texts that end the text.
            prompt: Tokens that the text continues and that are sent as well. Stop texts in them are ignored.
        """
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = stop
        self._patterns = stop.text_patterns if stop else []
        self._matched = [0] * len(self._patterns)
        self._held = ""
        self._token_ids: list[int] = []
        self.prompt_text = self._detokenizer.add(prompt) if prompt else ""

    def add(self, token_ids: Sequence[int]) -> str:
        """Returns the text that can no longer change; it may be empty."""
        text = self._detokenizer.add(token_ids)
        if self._stop is None or not token_ids:
            return text  # with no new token, the held text may still be a stop text that ended the generation
        self._token_ids.extend(token_ids)
        before = len(self._held)
        self._held += text
        num_certain = len(self._held)
        for number in range(len(self._patterns)):
            num_certain = min(num_certain, before + self._find_stop(number, text))
        certain, self._held = self._held[:num_certain], self._held[num_certain:]
        return certain

    def finish(self, stop: str | None = None) -> str:
        """Returns the rest; `stop` is the stop text that the last token completed, if any, at which the text is cut."""
        text = self._held + self._detokenizer.finish()
        if stop is None or self._stop is None:
            return text
        found = self._stop.locate(self._token_ids, stop)
        return text.removesuffix(found.rest if self._stop.include else found.stop + found.rest)

    def _find_stop(self, number: int, text: str) -> int:
        """The position at which the stop text begins, complete or not; negative if it begins before this text.

        A complete one may have ended the generation, which is known only when the next token or the end comes.
        """
        pattern, matched = self._patterns[number], self._matched[number]
        begin: int | None = None
        for position, character in enumerate(text, 1):
            matched = pattern.advance(matched, character)
            if matched == len(pattern.text) and begin is None:
                begin = position - matched
        self._matched[number] = matched
        return len(text) - matched if begin is None else begin
