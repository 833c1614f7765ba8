"""One generation's tokens to the text that is sent: whole characters, and nothing that a stop text may take off."""

from collections.abc import Sequence

from gpu_service.text.stop_strings import StopStrings
from gpu_service.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"


class Detokenizer:
    """Turns one generation's tokens into text as they come. The pieces, joined, are decode(all ids).

    A token's text depends on those before it (a leading space is dropped at the very start, bytes join to characters),
    so a window of tokens is decoded, once without and once with the new ones, and the difference is what is new. The
    window begins at the last place where the text was complete.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._window_start = 0
        self._num_emitted = 0  # tokens whose text was given out

    def add(self, token_ids: Sequence[int]) -> str:
        """Returns the text that has become certain; it may be empty."""
        self._token_ids.extend(token_ids)
        if self._tokenizer.ends_in_byte(self._token_ids[self._num_emitted :]):
            return ""  # one more byte can change how the whole run of bytes before it is read
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
    """A Detokenizer that also holds back the text's end while it may be the beginning of a stop text."""

    def __init__(self, tokenizer: Tokenizer, stop: StopStrings | None = None, prompt: Sequence[int] = ()) -> None:
        """Begins a text.

        Args:
            tokenizer: Decodes.
            stop: What ends the text.
            prompt: Tokens that the text goes on from and that are sent; no stop text is looked for in them.
        """
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = stop
        self._patterns = stop.text_patterns if stop else []
        self._matched = [0] * len(self._patterns)
        self._held = ""
        self._token_ids: list[int] = []
        self.prompt_text = self._detokenizer.add(prompt) if prompt else ""

    def add(self, token_ids: Sequence[int]) -> str:
        """Returns the text that has become certain; it may be empty."""
        text = self._detokenizer.add(token_ids)
        if self._stop is None or not token_ids:
            return text  # without a token more, what is held may still be a stop text that ended the generation
        self._token_ids.extend(token_ids)
        before = len(self._held)
        self._held += text
        num_certain = len(self._held)
        for number in range(len(self._patterns)):
            num_certain = min(num_certain, before + self._look_for(number, text))
        certain, self._held = self._held[:num_certain], self._held[num_certain:]
        return certain

    def finish(self, stop: str | None = None) -> str:
        """Returns the rest, up to the stop text that the last token completed, if it did."""
        text = self._held + self._detokenizer.finish()
        if stop is None or self._stop is None:
            return text
        found = self._stop.locate(self._token_ids, stop)
        return text.removesuffix(found.rest if self._stop.include else found.stop + found.rest)

    def _look_for(self, number: int, text: str) -> int:
        """Where in the text, or by a negative number before it, a stop text begins that is all or partly there.

        One that is all there may have ended the generation, which is not known before the next token or the end comes.
        """
        pattern, matched = self._patterns[number], self._matched[number]
        begin: int | None = None
        for position, character in enumerate(text, 1):
            matched = pattern.advance(matched, character)
            if matched == len(pattern.text) and begin is None:
                begin = position - matched
        self._matched[number] = matched
        return len(text) - matched if begin is None else begin
