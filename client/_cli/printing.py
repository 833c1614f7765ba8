"""Reads the prompt of a generation and prints its text or its messages."""

import contextlib
import io
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from google.protobuf.json_format import MessageToDict

from client._cli.progress import Progress
from client._errors import GenerationCancelledError
from client._messages import Complete, Event, GenerationChunk, event_from
from client._statuses import invalid
from client.client import Generation


def read_prompt(argument: str) -> str:
    """The prompt: the argument itself, or for "-" all of standard input.

    Raises:
        InvalidRequestError: Standard input cannot be read, or is not UTF-8.
    """
    if argument != "-":
        return argument
    try:
        return sys.stdin.buffer.read().decode()
    except OSError as error:
        raise invalid("prompt", f"standard input cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise invalid("prompt", f"standard input is not UTF-8: {error.reason} at byte {error.start}") from error


def text_of(event: Event) -> str:
    """The text that an event adds to the output."""
    return event.text if isinstance(event, GenerationChunk | Complete) else ""


def print_generation(generation: Generation, *, as_json: bool, text_of: Callable[[Event], str] = text_of) -> None:
    """Prints a generation as it arrives and, if standard error is a terminal, its progress.

    Args:
        generation: The generation.
        as_json: Whether to print each message as JSON instead of the text.
        text_of: What is printed of an event. Called with each, also if messages are printed as JSON.

    Raises:
        KeyboardInterrupt: The user stopped the generation. It has been cancelled on the server.
        ClientError: The generation failed.
        OSError: The output cannot be written.
    """
    with _interrupt_cancels(generation):
        if as_json:
            _print_json(generation, text_of)
        elif generation.num_generations == 1:
            _print_text(generation, text_of)
        else:
            _print_several(generation)


@contextlib.contextmanager
def _interrupt_cancels(generation: Generation) -> Iterator[None]:
    """Lets Ctrl-C cancel the generation, and raises KeyboardInterrupt after the generation has ended.

    Raised inside gRPC's code, as by default, KeyboardInterrupt may leave a lock taken, and the next call waits for it.
    """
    interrupted = False

    def cancel(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt  # a second Ctrl-C: the main thread may wait for the output
        interrupted = True
        # In a thread, since the interrupted code may hold a lock that cancel() needs.
        threading.Thread(target=generation.cancel, daemon=True).start()

    previous = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    except GenerationCancelledError:
        if not interrupted:
            raise
    finally:
        signal.signal(signal.SIGINT, previous)
    if interrupted:
        raise KeyboardInterrupt


def _print_text(generation: Generation, text_of: Callable[[Event], str]) -> None:
    """Prints the text of a single generation."""
    _replace_unprintable()
    progress = Progress()
    unfinished_line = False
    try:
        progress.start()
        for event in generation:
            progress.see(event)
            if text := text_of(event):
                progress.make_room()
                unfinished_line = True
                print(text, end="", flush=True)
        unfinished_line = True  # an empty text is printed as a line too
    finally:
        progress.make_room()
        if unfinished_line:
            print(flush=True)
        progress.end(generation.completes)


def _print_json(generation: Generation, text_of: Callable[[Event], str]) -> None:
    """Prints each message as a line of JSON, by the field names of the .proto files."""
    for response in generation.responses():
        fields = MessageToDict(response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        print(json.dumps(fields), flush=True)
        if (event := event_from(response)) is not None:
            text_of(event)


def _print_several(generation: Generation) -> None:
    """Prints several texts by index, each under a heading once it is complete."""
    _replace_unprintable()
    progress = Progress()
    texts: dict[int, str] = {}
    num_printed = 0
    try:
        progress.start()
        for event in generation:
            progress.see(event)
            if isinstance(event, GenerationChunk | Complete):
                texts[event.index] = texts.get(event.index, "") + event.text
            while num_printed in generation.completes:
                progress.make_room()
                heading = _heading(generation.completes[num_printed], generation.num_generations)
                print(f"{heading}\n{texts[num_printed]}", flush=True)
                num_printed += 1
    finally:
        progress.end(generation.completes)


def _heading(complete: Complete, num_generations: int) -> str:
    score = "" if complete.score is None else f", score {complete.score:.4f}"
    return f"--- {complete.index + 1} of {num_generations}{score} ---"


def _replace_unprintable() -> None:
    """Prints a question mark for a character that the output's encoding lacks."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
