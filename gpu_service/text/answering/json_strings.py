"""Follows the text of a JSON value, and escapes what its strings could hide."""

import string

_ESCAPED = frozenset(string.punctuation) - frozenset('"\\')


class JsonStrings:
    """One JSON value, as it comes.

    Within its strings, punctuation becomes an escape by its number, which means the same. So no string can hold
    what looks like the mark after the value.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._has_begun = False
        self._is_in_string = False
        self._is_escaped = False

    @property
    def is_done(self) -> bool:
        """Whether the value, an object or an array, has ended."""
        return self._has_begun and self._depth == 0

    def take(self, text: str) -> tuple[str, str]:
        """The part of a text that belongs to the value, as it is and with its strings escaped."""
        shown: list[str] = []
        for place, character in enumerate(text):
            shown.append(self._next(character))
            if self.is_done:
                return text[: place + 1], "".join(shown)
        return text, "".join(shown)

    def _next(self, character: str) -> str:
        if self._is_in_string:
            if self._is_escaped:
                self._is_escaped = False
            elif character == "\\":
                self._is_escaped = True
            elif character == '"':
                self._is_in_string = False
            elif character in _ESCAPED:
                return f"\\u{ord(character):04x}"
        elif character == '"':
            self._is_in_string = self._has_begun
        elif character in "[{":
            self._depth += 1
            self._has_begun = True
        elif character in "]}":
            self._depth -= 1
        return character
