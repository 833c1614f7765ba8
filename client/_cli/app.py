"""The arguments of `python -m client`, and what it exits with."""

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Unpack

import typer

from client._cli.exit_status import exit_status
from client._cli.flags import with_flags
from client._errors import ClientError, InvalidRequestError, UnauthenticatedError
from client._options import GenerateOptions, TlsOptions, ToolOptions
from fiddler.command_line import DONE, FAILED, UsageError, fail, run

_MODULE = "client"
EPILOG = (
    "Exit status: 0 done, or the reader of the output has closed it; 1 the server failed, or the output cannot be "
    "written; 2 wrong usage or request; 3 no server answers; 4 the server is busy; 5 the timeout has passed; "
    "6 the server asks for a token, or for another one; 130 interrupted."
)

_NAMES = {"text": "PROMPT", "token_ids": "PROMPT"}
"""What the fields of a request are called here, if they are no flags of their own name."""


class _Options(GenerateOptions, ToolOptions, TlsOptions, total=False):
    """The options of the library that are flags here by their own names."""


_Target = Annotated[str, typer.Option(help="Where the server listens: HOST:PORT or unix:PATH.")]
_System = Annotated[str | None, typer.Option(help="With --chat: the system message.")]
_AsJson = Annotated[bool, typer.Option("--json", help="Print each message received as a line of JSON.")]
_RetryBusy = Annotated[bool, typer.Option("--retry", help="Retry when the server says, as long as it is busy.")]
_TokenFile = Annotated[
    Path | None,
    typer.Option(help="File whose first line is the token to present. Without it, FIDDLER_TOKEN holds the token."),
]
_DEFAULT_TARGET = "127.0.0.1:50051"


@with_flags(_Options)
def generate(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The text to continue; - reads it from standard input.")
    ] = None,
    *,
    target: _Target = _DEFAULT_TARGET,
    chat: Annotated[bool, typer.Option("--chat", help="Chat with the model. PROMPT, if given, is said first.")] = False,
    system: _System = None,
    info: Annotated[
        bool, typer.Option("--info", help="Print information about the server and its model as JSON instead.")
    ] = False,
    abort: Annotated[
        list[str] | None,
        typer.Option(metavar="REQUEST_ID", help="End the request of that name instead; may be repeated."),
    ] = None,
    as_json: _AsJson = False,
    retry_busy: _RetryBusy = False,
    token_file: _TokenFile = None,
    **options: Unpack[_Options],
) -> int:
    """Sends a prompt to the GPU service and prints the generated text as it arrives."""
    if prompt is None and not (chat or info or abort):
        raise UsageError("Missing argument 'PROMPT'")
    return _execute(context.params)


@with_flags(_Options)
def chat(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="What is said first.")] = None,
    *,
    target: _Target = _DEFAULT_TARGET,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    as_json: _AsJson = False,
    retry_busy: _RetryBusy = False,
    token_file: _TokenFile = None,
    **options: Unpack[_Options],
) -> int:
    """Chats with the model, line by line; of a pipe, each line is a message."""
    return _execute({**context.params, "chat": True, "info": False, "abort": None})


def _execute(arguments: Mapping[str, Any]) -> int:
    from client._cli.commands import execute  # gRPC takes longer to import than --help may take

    try:
        return DONE if execute(arguments) else FAILED
    except ClientError as error:
        return fail(_MODULE, _in_words_of_the_command_line(error), exit_status(error))


def _in_words_of_the_command_line(error: ClientError) -> str:
    """The error's text, with the flags that help instead of a request's fields."""
    if isinstance(error, UnauthenticatedError):
        return f"{error.message} (give it with --token-file FILE, or in the environment's FIDDLER_TOKEN)"
    if isinstance(error, InvalidRequestError) and error.field in _NAMES:
        return error.message.replace(error.field, _NAMES[error.field], 1)
    return error.message


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    try:
        return run(generate, arguments, module=_MODULE, epilog=EPILOG)
    except OSError as error:
        return fail(_MODULE, f"cannot write the output: {error.strerror}", FAILED)
    finally:
        # Deleting a gRPC call takes a lock. Delete it here, while gRPC's threads run: when Python exits, one of them
        # may be stopped with the lock taken, and the deletion would wait forever.
        gc.collect()
