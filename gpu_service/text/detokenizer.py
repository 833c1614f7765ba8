"""Turns a generation's tokens into the text that is sent: whole characters, and nothing a stop text may cut off."""

from collections.abc import Sequence

from gpu_service.text.stop_strings import StopStrings
from gpu_service.text.tokenizer import Tokenizer


class Detokenizer:
    """Turns one generation's tokens into text as they come. The pieces, joined, are decode(all ids).

    A token's text depends on the tokens before it: a leading space is dropped at the very start, and bytes join to
    characters. So a window of tokens is decoded, which begins with some whose text was sent; the rest is new text.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._num_sent = 0  # characters of the window's text
        self._num_whole = 0  # tokens of the window, as many as there were when all of its text was last sent
        self._skips = skip_special_tokens

    def add(self, token_ids: Sequence[int]) -> str:
        """Returns the text that can no longer change; it may be empty."""
        added = self._tokenizer.visible(token_ids) if self._skips else list(token_ids)
        self._window += added
        if not added or not self._tokenizer.only_grows:
            return ""
        text = self._tokenizer.decode(self._window, self._skips)
        num_certain = len(text) - self._tokenizer.num_incomplete(self._window, text)
        piece = text[self._num_sent : num_certain]
        self._num_sent = max(self._num_sent, num_certain)
        if num_certain == len(text) and piece:
            self._move_window()
        return piece

    def finish(self) -> str:
        """Returns the rest."""
        return self._tokenizer.decode(self._window, self._skips)[self._num_sent :]

    def _move_window(self) -> None:
        """Leaves out the first tokens, all of whose text was sent. Those that stay have a text of their own."""
        rest = self._window[self._num_whole :]
        # at the beginning of a text a decoder may drop spaces; only with other text do they all belong to the window
        if text := self._tokenizer.decode(rest, self._skips):
            self._window, self._num_sent = rest, len(text)
        self._num_whole = len(self._window)


class TextStream:
    """A Detokenizer that also holds back the end of the text while it may be the beginning of a stop text."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: StopStrings | None = None,
        prompt: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        """Begins a text.

        Args:
            tokenizer: Decodes the tokens.
            stop: The stop texts that end the text.
            prompt: Tokens that the text continues and that are sent as well. Stop texts in them are ignored.
            skip_special_tokens: Whether special tokens are left out of the text.
        """
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens)
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
