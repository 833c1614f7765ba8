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
        InvalidRequestError: Standard input is no UTF-8.
    """
    if argument != "-":
        return argument
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise invalid("prompt", f"standard input is no UTF-8: {error.reason} at byte {error.start}") from error


def print_text(generation: Generation) -> None:
    """Prints the text as it comes, and for a person at a terminal how long it took."""
    _never_fail_to_encode()
    started = time.monotonic()
    first = None
    column_0 = True
    try:
        for event in generation:
            if isinstance(event, Chunk):
                first = first or time.monotonic()
                if event.text:
                    column_0 = False
                    print(event.text, end="", flush=True)
        column_0 = False  # even where it is empty, the output is a line
    finally:
        if not column_0:
            print(flush=True)
    if generation.complete and sys.stderr.isatty():
        _print_summary(generation.complete, started, first or time.monotonic())


def print_json(generation: Generation) -> None:
    """Prints each message by the names that its fields have in the .proto files, one line each."""
    for response in generation.responses():
        fields = MessageToDict(response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        print(json.dumps(fields), flush=True)


def abandon_output() -> None:
    """Keeps Python from flushing, as it exits, what nobody reads any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _never_fail_to_encode() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _print_summary(complete: Complete, started: float, first: float) -> None:
    from rich.console import Console  # a fifth of a second, and only people need it

    parts = [f"{complete.completion_tokens} tokens", f"first after {first - started:.2f} s"]
    decode_seconds = time.monotonic() - first
    if complete.completion_tokens > 1 and decode_seconds > 0:
        parts.append(f"{(complete.completion_tokens - 1) / decode_seconds:.1f} tokens/s")
    parts.append(f"ended by {complete.finish_reason.name.lower()}")
    Console(stderr=True, highlight=False).print(", ".join(parts), style="dim", soft_wrap=True)
