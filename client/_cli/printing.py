"""What the command line reads and prints of a generation."""

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
from client._messages import Complete, GenerationChunk, event_from
from client._statuses import invalid
from client.client import Generation


def read_prompt(argument: str) -> str:
    """The prompt that the argument stands for: itself, or standard input, as it is, for "-".

    Raises:
        InvalidRequestError: Standard input cannot be read, or is no UTF-8.
    """
    if argument != "-":
        return argument
    try:
        return sys.stdin.buffer.read().decode()
    except OSError as error:
        raise invalid("prompt", f"standard input cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise invalid("prompt", f"standard input is no UTF-8: {error.reason} at byte {error.start}") from error


def print_generation(generation: Generation, *, as_json: bool, hear: Callable[[str], object] = len) -> None:
    """Prints a generation as it comes, and for a person at a terminal how fast.

    Args:
        generation: The generation.
        as_json: Whether each message is printed as it is, rather than the text.
        hear: Gets each piece of text, once it is printed.

    Raises:
        KeyboardInterrupt: The user stopped it, and the server was told.
        ClientError: The generation failed.
        OSError: The output cannot be written.
    """
    with _interrupt_cancels(generation):
        if as_json:
            _print_json(generation, hear)
        elif generation.num_generations == 1:
            _print_text(generation, hear)
        else:
            _print_several(generation)


@contextlib.contextmanager
def _interrupt_cancels(generation: Generation) -> Iterator[None]:
    """Has Ctrl-C cancel the generation, and raises KeyboardInterrupt once it has ended.

    Raised amid gRPC's own code, as it otherwise would be, it may leave a lock taken that the next call waits for.
    """
    interrupted = False

    def cancel(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt  # the output may be what it waits for
        interrupted = True
        # not from here, where a lock may be taken that it needs
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


def _print_text(generation: Generation, hear: Callable[[str], object]) -> None:
    """Prints the one text of a generation."""
    _be_able_to_print_all()
    progress = Progress()
    unfinished_line = False
    try:
        progress.start()
        for event in generation:
            progress.see(event)
            if isinstance(event, GenerationChunk | Complete) and event.text:
                progress.make_room()
                unfinished_line = True
                print(event.text, end="", flush=True)
                hear(event.text)
        unfinished_line = True  # even where it is empty, the output is a line
    finally:
        progress.make_room()
        if unfinished_line:
            print(flush=True)
        progress.end(generation.completes)


def _print_json(generation: Generation, hear: Callable[[str], object]) -> None:
    """Prints each message by the names that its fields have in the .proto files, one line each."""
    for response in generation.responses():
        fields = MessageToDict(response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        print(json.dumps(fields), flush=True)
        if isinstance(event := event_from(response), GenerationChunk | Complete):
            hear(event.text)


def _print_several(generation: Generation) -> None:
    """Prints several texts, each as a whole under a heading, in the order of their indices."""
    _be_able_to_print_all()
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


def _be_able_to_print_all() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a question mark is better than no answer
