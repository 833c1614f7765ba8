"""What the command line reads and prints."""

import io
import json
import os
import sys
import time

from google.protobuf.json_format import MessageToDict

from client._messages import Chunk, Complete
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


def print_generation(generation: Generation, *, as_json: bool) -> None:
    """Prints a generation as it comes, and stops, without a word, where whoever reads the output has left.

    Raises:
        OSError: The output cannot be written.
        ClientError: The generation failed.
    """
    try:
        if as_json:
            _print_json(generation)
        else:
            _print_text(generation)
    except OSError as error:
        _abandon_output()
        if not isinstance(error, BrokenPipeError):
            raise


def _print_text(generation: Generation) -> None:
    """Prints the text as it comes, and for a person at a terminal how long it took."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a question mark is better than no answer
    started = time.monotonic()
    first = None
    unfinished_line = False
    try:
        for event in generation:
            if isinstance(event, Chunk):
                first = first or time.monotonic()
                if event.text:
                    unfinished_line = True
                    print(event.text, end="", flush=True)
        unfinished_line = True  # even where it is empty, the output is a line
    finally:
        if unfinished_line:
            print(flush=True)
    if generation.complete and sys.stderr.isatty():
        _print_summary(generation.complete, started, first or time.monotonic())


def _print_json(generation: Generation) -> None:
    """Prints each message by the names that its fields have in the .proto files, one line each."""
    for response in generation.responses():
        fields = MessageToDict(response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        print(json.dumps(fields), flush=True)


def _abandon_output() -> None:
    """Keeps Python from flushing, as it exits, what nobody reads any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_summary(complete: Complete, started: float, first: float) -> None:
    from rich.console import Console  # a fifth of a second, and only people need it

    parts = [f"{complete.completion_tokens} tokens", f"first after {first - started:.2f} s"]
    decode_seconds = time.monotonic() - first
    if complete.completion_tokens > 1 and decode_seconds > 0:
        parts.append(f"{(complete.completion_tokens - 1) / decode_seconds:.1f} tokens/s")
    parts.append(f"ended by {complete.finish_reason.name.lower()}")
    Console(stderr=True, highlight=False).print(", ".join(parts), style="dim", soft_wrap=True)
