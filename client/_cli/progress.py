"""A line on standard error that shows the progress of a generation and, at the end, its figures."""

import os
import shutil
import sys
import time
from collections.abc import Mapping

from client._messages import BestBeam, Complete, Event, GenerationChunk

_MIN_UPDATE_SECONDS = 0.1
_ERASE_LINE = "\r\x1b[K"


class Progress:
    """The line of one generation. It is shown only if standard error is a terminal, and never within the text."""

    def __init__(self) -> None:
        self._is_enabled = sys.stderr.isatty()
        self._is_live = self._is_enabled and os.environ.get("TERM") != "dumb"
        self._is_visible = False
        self._started = self._updated = time.monotonic()
        self._first_at: float | None = None
        self._num_tokens = 0
        self._best: BestBeam | None = None

    def start(self) -> None:
        """Shows that nothing has arrived yet."""
        self._show("waiting for the first token")

    def see(self, event: Event) -> None:
        """Counts an event and updates the line."""
        now = time.monotonic()
        if isinstance(event, GenerationChunk):
            self._first_at = self._first_at or now
            self._num_tokens += len(event.token_ids)
        elif isinstance(event, BestBeam):
            self._best = event
        if now - self._updated >= _MIN_UPDATE_SECONDS:
            self._updated = now
            self._show(self._state(now))

    def make_room(self) -> None:
        """Removes the line for good if the text is printed on the same terminal."""
        if sys.stdout.isatty():
            self._erase()
            self._is_live = False

    def end(self, completes: Mapping[int, Complete]) -> None:
        """Leaves a line with the figures, or none if no generation completed."""
        self._erase()
        self._is_live = False
        if not self._is_enabled or not completes:
            return
        from rich.console import Console  # takes a fifth of a second to import, and scripts do not need it

        Console(stderr=True, highlight=False).print(self._summary(completes), style="dim", soft_wrap=True)

    def _state(self, now: float) -> str:
        if self._best is not None:
            # _show cuts the line to the width of the terminal.
            text = " ".join(self._best.text.split())
            return f"{len(self._best.token_ids)} tokens, best score so far {self._best.score:.3f}: {text}"
        if self._first_at is None:
            return "waiting for the first token"
        seconds = now - self._first_at
        rate = f", {(self._num_tokens - 1) / seconds:.1f} tokens/s" if self._num_tokens > 1 and seconds else ""
        return f"{_count(self._num_tokens)}{rate}"

    def _summary(self, completes: Mapping[int, Complete]) -> str:
        num_tokens = sum(complete.completion_tokens for complete in completes.values())
        parts = [_count(num_tokens)]
        if self._first_at is None:  # beams: all of their tokens arrive with the end
            decode_seconds = max(complete.decode_seconds for complete in completes.values())
        else:
            parts.append(f"first after {self._first_at - self._started:.2f} s")
            decode_seconds = time.monotonic() - self._first_at
        num_decoded = num_tokens - len(completes)
        if num_decoded > 0 and decode_seconds > 0:
            parts.append(f"{num_decoded / decode_seconds:.1f} tokens/s")
        reasons = dict.fromkeys(complete.finish_reason.name.lower() for complete in completes.values())
        return ", ".join([*parts, f"ended by {' and '.join(reasons)}"])

    def _show(self, line: str) -> None:
        if self._is_live:
            width = shutil.get_terminal_size().columns
            print(f"{_ERASE_LINE}{line[: width - 1]}", end="", file=sys.stderr, flush=True)
            self._is_visible = True

    def _erase(self) -> None:
        if self._is_visible:
            print(_ERASE_LINE, end="", file=sys.stderr, flush=True)
            self._is_visible = False


def _count(num_tokens: int) -> str:
    return f"{num_tokens} token{'' if num_tokens == 1 else 's'}"
